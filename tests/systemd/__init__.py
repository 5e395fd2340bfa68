"""The service as it is installed, on a machine of its own."""
