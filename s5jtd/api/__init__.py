"""The HTTPS log API: what the daemon tells over its socket, for those who may read it over the network."""
