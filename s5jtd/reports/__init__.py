"""Run reports: what each pass moved, told once, in a file of its own."""
