"""Folders as sides of a job: read and written like a bucket, and never left by way of a name."""
