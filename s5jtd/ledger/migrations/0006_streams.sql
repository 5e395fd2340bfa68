-- What went from bucket to bucket without a volume, for the limits on bytes: a row for each batch, written with
-- its whole size before it moves, and corrected once it is known what did.  A cut leaves the whole size.
CREATE TABLE streams (
    id     INTEGER PRIMARY KEY,
    job_id INTEGER NOT NULL REFERENCES jobs (id),
    at_ms  INTEGER NOT NULL,
    bytes  INTEGER NOT NULL
) STRICT;
CREATE INDEX streams_by_time ON streams (at_ms);
