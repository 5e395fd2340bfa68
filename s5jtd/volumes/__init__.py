"""The disks between the two halves: what is mounted, how full it is, and the chunk folders on it."""
