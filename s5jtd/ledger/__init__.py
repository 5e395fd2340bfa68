"""The ledger: what is true of every object, and since when; the only thing the stages share."""
