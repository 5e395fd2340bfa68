-- The ledger: what is true of every object, and since when.
--
-- Times are Unix milliseconds (UTC), sizes bytes, keys the exact bytes the source lists.  Order
-- comes from ids, never from times: clocks jump.

-- The numbers in `objects.state`, for people who read this file with other tools.
CREATE TABLE states (
    code INTEGER PRIMARY KEY,
    name TEXT NOT NULL UNIQUE
) STRICT;
INSERT INTO states VALUES
    (0, 'seen'), (1, 'pulling'), (2, 'staged'), (3, 'pushing'),
    (4, 'delivered'), (5, 'gone'), (6, 'parked');

-- Jobs outlive the configuration: what a removed job moved stays provable.
CREATE TABLE jobs (
    id          INTEGER PRIMARY KEY,
    name        TEXT    NOT NULL UNIQUE,
    source      TEXT    NOT NULL,  -- bucket and prefix, to notice that a name was given to other data
    destination TEXT    NOT NULL,
    pull_paused_until_ms INTEGER,  -- NULL: not paused; the largest integer: until resumed
    push_paused_until_ms INTEGER
) STRICT;

-- Kept by the very transactions that move objects, so that asking costs the same at any size.
CREATE TABLE counters (
    job_id  INTEGER NOT NULL REFERENCES jobs (id),
    state   INTEGER NOT NULL REFERENCES states (code),
    objects INTEGER NOT NULL DEFAULT 0 CHECK (objects >= 0),
    bytes   INTEGER NOT NULL DEFAULT 0 CHECK (bytes >= 0),
    PRIMARY KEY (job_id, state)
) STRICT, WITHOUT ROWID;

-- One row for every look at a source.
CREATE TABLE passes (
    id             INTEGER PRIMARY KEY,
    job_id         INTEGER NOT NULL REFERENCES jobs (id),
    started_at_ms  INTEGER NOT NULL,
    finished_at_ms INTEGER,
    complete       INTEGER NOT NULL DEFAULT 0 CHECK (complete IN (0, 1)),
    listed         INTEGER NOT NULL DEFAULT 0,
    fresh          INTEGER NOT NULL DEFAULT 0,  -- new or changed since the pass before
    found          INTEGER NOT NULL DEFAULT 0,  -- of these, already at the destination
    error          TEXT
) STRICT;
CREATE INDEX passes_of_job ON passes (job_id, id);

CREATE TABLE volumes (
    id           INTEGER PRIMARY KEY,
    uuid         TEXT    NOT NULL UNIQUE,
    name         TEXT    NOT NULL,
    path         TEXT    NOT NULL,
    attach_epoch INTEGER NOT NULL DEFAULT 0  -- grows at each attach; a lower one on the disk is a clone
) STRICT;

-- Objects pulled together onto one volume; the unit from pull to release.
CREATE TABLE chunks (
    id             INTEGER PRIMARY KEY,
    name           TEXT    NOT NULL UNIQUE,  -- of its folder on the volume
    job_id         INTEGER NOT NULL REFERENCES jobs (id),
    volume_id      INTEGER NOT NULL REFERENCES volumes (id),
    state          TEXT    NOT NULL
                   CHECK (state IN ('planned', 'pulling', 'sealed', 'pushing', 'resting', 'released')),
    objects        INTEGER NOT NULL,
    bytes          INTEGER NOT NULL,
    reserved_bytes INTEGER NOT NULL,            -- promised on the volume and perhaps not written yet
    aboard         INTEGER NOT NULL DEFAULT 0,  -- objects with a file in the folder
    aboard_bytes   INTEGER NOT NULL DEFAULT 0,
    delivered      INTEGER NOT NULL DEFAULT 0,  -- of the objects aboard, those safe to unlink
    not_before_ms  INTEGER NOT NULL DEFAULT 0,
    pull_endpoint  TEXT,
    push_endpoint  TEXT,
    planned_at_ms  INTEGER NOT NULL,
    pulling_at_ms  INTEGER,
    sealed_at_ms   INTEGER,
    pushing_at_ms  INTEGER,
    pushed_at_ms   INTEGER,
    released_at_ms INTEGER
) STRICT;
CREATE INDEX chunks_of_job ON chunks (job_id, state);
CREATE INDEX chunks_alive ON chunks (volume_id, state, id) WHERE state <> 'released';

-- One row for each key of a job, in its newest version that we know of.
CREATE TABLE objects (
    id            INTEGER PRIMARY KEY,
    job_id        INTEGER NOT NULL REFERENCES jobs (id),
    key           BLOB    NOT NULL,
    size          INTEGER NOT NULL CHECK (size >= 0),
    etag          TEXT    NOT NULL,
    modified_ms   INTEGER NOT NULL,
    state         INTEGER NOT NULL REFERENCES states (code),
    since_ms      INTEGER NOT NULL,            -- when it came into this state
    seen_at_ms    INTEGER NOT NULL,
    attempts      INTEGER NOT NULL DEFAULT 0,  -- of the present hop, counted before the work
    not_before_ms INTEGER NOT NULL DEFAULT 0,
    chunk_id      INTEGER REFERENCES chunks (id),
    aboard        INTEGER NOT NULL DEFAULT 0 CHECK (aboard IN (0, 1)),  -- a file of it lies in the chunk's folder
    reason        TEXT,                        -- why it is parked: a code, a colon, words
    -- What was established at the pull.
    staged_at_ms  INTEGER,
    pull_evidence TEXT CHECK (pull_evidence IN ('checksum', 'etag', 'readback', 'size')),
    crc64nvme     TEXT,                        -- base64, as S3 writes it
    md5           TEXT,
    sha256        TEXT,
    part_size     INTEGER,                     -- of the upload, in bytes
    part_etag     TEXT,                        -- the multipart ETag that this part size must give
    -- What was established at the destination.
    delivered_at_ms  INTEGER,
    push_evidence    TEXT CHECK (push_evidence IN ('checksum', 'etag', 'readback', 'size')),
    destination_etag TEXT,
    found            INTEGER NOT NULL DEFAULT 0 CHECK (found IN (0, 1)),  -- it was there before we came
    UNIQUE (job_id, key)
) STRICT;
-- Claims: what is due, in key order; not_before_ms is 0 for all that was never put off.
CREATE INDEX objects_seen ON objects (job_id, not_before_ms, key) WHERE state = 0;
CREATE INDEX objects_parked ON objects (job_id, key) WHERE state = 6;
-- What a chunk that is being pulled promised.
CREATE INDEX objects_in_flight ON objects (chunk_id) WHERE state = 1;
-- Files in a chunk's folder.
CREATE INDEX objects_aboard ON objects (chunk_id) WHERE aboard = 1;

-- Deliveries of versions that the source has replaced since.
CREATE TABLE past_deliveries (
    id               INTEGER PRIMARY KEY,
    object_id        INTEGER NOT NULL REFERENCES objects (id),
    size             INTEGER NOT NULL,
    etag             TEXT    NOT NULL,
    modified_ms      INTEGER NOT NULL,
    staged_at_ms     INTEGER,
    pull_evidence    TEXT,
    crc64nvme        TEXT,
    delivered_at_ms  INTEGER NOT NULL,
    push_evidence    TEXT,
    destination_etag TEXT,
    chunk_id         INTEGER REFERENCES chunks (id)
) STRICT;
CREATE INDEX past_deliveries_of_object ON past_deliveries (object_id);

-- One row for each attempt that did not succeed.
CREATE TABLE failures (
    id        INTEGER PRIMARY KEY,
    object_id INTEGER NOT NULL REFERENCES objects (id),
    at_ms     INTEGER NOT NULL,
    step      TEXT    NOT NULL,  -- pull or push
    chunk_id  INTEGER,
    endpoint  TEXT,
    code      TEXT    NOT NULL,
    message   TEXT    NOT NULL
) STRICT;
CREATE INDEX failures_of_object ON failures (object_id);
