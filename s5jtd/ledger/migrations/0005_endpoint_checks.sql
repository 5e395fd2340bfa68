-- What `s5jtd check` found out of each endpoint when it looked last, so that the road need not ask again.  By the
-- job's name and not its number: one may be checked before it ever ran.

CREATE TABLE endpoint_checks (
    job          TEXT    NOT NULL,
    side         TEXT    NOT NULL CHECK (side IN ('source', 'destination')),
    url          TEXT    NOT NULL,
    at_ms        INTEGER NOT NULL,
    ok           INTEGER NOT NULL CHECK (ok IN (0, 1)),
    error        TEXT,                                         -- what failed first
    latency_ms   REAL,                                         -- NULL, here and below: not found out
    list_version TEXT    CHECK (list_version IN ('1', '2')),
    ordered      INTEGER CHECK (ordered IN (0, 1)),            -- its listing
    part_numbers INTEGER CHECK (part_numbers IN (0, 1)),       -- a HEAD tells the size of one part
    found        TEXT    NOT NULL,                             -- all of it, as JSON
    PRIMARY KEY (job, side, url)
) STRICT, WITHOUT ROWID;

-- Whether an object's evidence came over TLS that nobody verified (`tls.verify: false`), for each hop.
ALTER TABLE objects ADD COLUMN pull_insecure INTEGER NOT NULL DEFAULT 0;
ALTER TABLE objects ADD COLUMN push_insecure INTEGER NOT NULL DEFAULT 0;
ALTER TABLE past_deliveries ADD COLUMN pull_insecure INTEGER NOT NULL DEFAULT 0;
ALTER TABLE past_deliveries ADD COLUMN push_insecure INTEGER NOT NULL DEFAULT 0;
