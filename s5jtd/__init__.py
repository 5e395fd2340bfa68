"""s5jtd: a store-and-forward daemon that moves S3 objects over local volumes and proves each hop."""

__version__ = "0.1.0"
