-- What of a large object was moved before its transfer broke off, so that the next one goes on from there.

-- Of a chunk that was put off with its one object half pulled: the bytes that were durable then.
ALTER TABLE chunks ADD COLUMN resumed_bytes INTEGER NOT NULL DEFAULT 0;

-- Multipart uploads that were begun and not ended.  No foreign keys to objects: a row may outlive what it was
-- about until somebody has told the destination.
CREATE TABLE uploads (
    id          INTEGER PRIMARY KEY,
    upload_id   TEXT    NOT NULL,  -- the destination's word
    job_id      INTEGER NOT NULL REFERENCES jobs (id),
    object_id   INTEGER NOT NULL,
    key         BLOB    NOT NULL,  -- at the destination
    size        INTEGER NOT NULL,  -- with the ETag: the version whose bytes the parts are
    etag        TEXT    NOT NULL,
    part_size   INTEGER NOT NULL,
    began_at_ms INTEGER NOT NULL
) STRICT;
CREATE INDEX uploads_of_object ON uploads (object_id);
CREATE INDEX uploads_of_job ON uploads (job_id);

-- The parts the destination took in.
CREATE TABLE upload_parts (
    upload    INTEGER NOT NULL REFERENCES uploads (id),
    number    INTEGER NOT NULL,
    etag      TEXT    NOT NULL,
    crc64nvme TEXT,              -- of its bytes, where they went from bucket to bucket and lie nowhere else
    PRIMARY KEY (upload, number)
) STRICT, WITHOUT ROWID;
