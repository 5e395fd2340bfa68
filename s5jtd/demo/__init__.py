"""A whole transfer on one machine: two S3 servers, a filled source, and an independent comparison at the end.

Nothing here is part of the daemon, and the daemon imports nothing from here.  The servers are moto's, which
holds every key S3 allows, makes AWS-like multipart ETags and keeps checksums, metadata and tags.
"""
