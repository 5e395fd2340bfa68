-- Which volumes an operator wants empty.  The wish is the volume's, not its path's: it goes where the disk goes.

ALTER TABLE volumes ADD COLUMN draining_since_ms INTEGER;  -- NULL: it may take new chunks
