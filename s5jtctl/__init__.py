"""s5jtctl: asks the daemon over its control socket and shows the answer; knows only the protocol."""
