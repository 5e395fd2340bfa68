"""What the program costs, measured by hand; each script prints a table."""
