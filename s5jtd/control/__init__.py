"""What the control socket may ask of the daemon, who may ask it, and the server that listens."""
