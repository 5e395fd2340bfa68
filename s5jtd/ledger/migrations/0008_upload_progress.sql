-- When the destination last took a part of an upload in: attempts that failed since brought nothing.
ALTER TABLE uploads ADD COLUMN part_at_ms INTEGER;
