"""`python -m s5jtd` is `s5jtd`."""

from s5jtd.cli import main

main()
