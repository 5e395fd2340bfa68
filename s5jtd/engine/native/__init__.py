"""The engine of our own, on botocore: it carries what s5cmd cannot."""
