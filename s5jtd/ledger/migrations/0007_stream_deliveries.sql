-- When a batch last brought something that travelled without a volume: chunks say it of those that did with one.
ALTER TABLE streams ADD COLUMN delivered_at_ms INTEGER;
CREATE INDEX streams_that_delivered ON streams (job_id, delivered_at_ms) WHERE delivered_at_ms IS NOT NULL;

-- A push that delivered nothing had set it too.
UPDATE chunks SET pushed_at_ms = NULL WHERE delivered = 0;
