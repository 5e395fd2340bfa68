"""A Snowball Edge made ready to be a source: unlocked, its keys fetched, its software brought up to date."""
