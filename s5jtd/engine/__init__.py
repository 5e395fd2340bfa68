"""What moves bytes between an endpoint and a chunk folder."""
