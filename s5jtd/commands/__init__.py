"""What each `s5jtd` command does, imported only when it is asked for."""
