-- What run reports are made of.
--
-- A pass begins with a look at the source, owns the objects it took in, and ends when all of them are at
-- rest (states 4 to 6).  What comes to rest is noted once, by the very transaction that moves it, and kept
-- until a report tells it: so a report costs what it tells, whatever the ledger holds besides.

-- The pass whose look took the object in.  No foreign key: looking for the objects of a pass that goes
-- would read all of them.
ALTER TABLE objects ADD COLUMN pass_id INTEGER;

-- A look may add to the pass before it, as long as nothing of that has come to rest: so an outage of a week
-- is one pass and not ten thousand.
ALTER TABLE passes ADD COLUMN joined INTEGER;  -- the pass this look adds to; NULL: it began its own
ALTER TABLE passes ADD COLUMN listed_bytes INTEGER NOT NULL DEFAULT 0;
CREATE INDEX passes_joined ON passes (joined) WHERE joined IS NOT NULL;

-- One row for each pass that a report may still have to tell of.
CREATE TABLE open_passes (
    pass_id         INTEGER PRIMARY KEY,
    job_id          INTEGER NOT NULL REFERENCES jobs (id),
    since_ms        INTEGER NOT NULL,            -- when what the next report tells began
    failures_before INTEGER NOT NULL,            -- the newest failure then; later ones are this pass's
    looking         INTEGER NOT NULL DEFAULT 0 CHECK (looking IN (0, 1)),
    open            INTEGER NOT NULL DEFAULT 0,  -- objects of it that are not at rest
    admitted        INTEGER NOT NULL DEFAULT 0,  -- objects its looks took in to travel
    admitted_bytes  INTEGER NOT NULL DEFAULT 0,
    arrived         INTEGER NOT NULL DEFAULT 0,  -- rows of `arrivals` there ever were of it
    told            INTEGER NOT NULL DEFAULT 0,  -- of these, those a report has told
    reports         INTEGER NOT NULL DEFAULT 0,  -- reports written of it
    -- A report under way: what it says is settled before its file is written, so that a crash in between
    -- makes the same report again and not a second one.
    epoch           INTEGER,                     -- its name
    upto            INTEGER,                     -- the last arrival that it tells
    cause           TEXT                         -- why it is written
) STRICT;

-- What came to rest and no report has told; rows never change.  A version of an object that is delivered
-- and then replaced within one pass has a row of its own.
CREATE TABLE arrivals (
    pass_id       INTEGER NOT NULL,
    number        INTEGER NOT NULL,  -- counts up within the pass, never used twice
    object_id     INTEGER NOT NULL,  -- no foreign key: see `objects.pass_id`
    at_ms         INTEGER NOT NULL,
    state         INTEGER NOT NULL,  -- delivered, gone or parked
    size          INTEGER NOT NULL,
    etag          TEXT    NOT NULL,  -- the source's
    pull_evidence TEXT,
    push_evidence TEXT,
    staged_at_ms  INTEGER,
    chunk_id      INTEGER,
    push_endpoint TEXT,
    reason        TEXT,
    PRIMARY KEY (pass_id, number)
) STRICT, WITHOUT ROWID;

-- Triggers, because many hands move objects and none may forget the report.  `< 4` is: not at rest.
-- The two views hold nothing: what is inserted into one is a call of its trigger.

CREATE VIEW note_arrival AS SELECT id AS object_id FROM objects WHERE 0;
CREATE TRIGGER note_arrival_of INSTEAD OF INSERT ON note_arrival
BEGIN
    UPDATE open_passes SET arrived = arrived + 1
    WHERE pass_id = (SELECT pass_id FROM objects WHERE id = NEW.object_id);
    INSERT INTO arrivals
    SELECT o.pass_id, p.arrived, o.id, o.since_ms, o.state, o.size, o.etag, o.pull_evidence, o.push_evidence,
           o.staged_at_ms, o.chunk_id, c.push_endpoint, o.reason
    FROM objects AS o JOIN open_passes AS p ON p.pass_id = o.pass_id LEFT JOIN chunks AS c ON c.id = o.chunk_id
    WHERE o.id = NEW.object_id;
END;

-- Gives an object to the newest look's pass, which is open again if it was not.
CREATE VIEW give_to_newest_pass AS SELECT id AS object_id, job_id, since_ms FROM objects WHERE 0;
CREATE TRIGGER give_to_newest_pass_of INSTEAD OF INSERT ON give_to_newest_pass
BEGIN
    INSERT INTO open_passes (pass_id, job_id, since_ms, failures_before)
    SELECT coalesce(joined, id), job_id, NEW.since_ms, (SELECT coalesce(max(id), 0) FROM failures)
    FROM passes WHERE job_id = NEW.job_id ORDER BY id DESC LIMIT 1
    ON CONFLICT (pass_id) DO NOTHING;
    UPDATE objects SET pass_id =
        (SELECT coalesce(joined, id) FROM passes WHERE job_id = NEW.job_id ORDER BY id DESC LIMIT 1)
    WHERE id = NEW.object_id;
END;

-- A look takes in an object that it had not met, to travel.  What the destination holds already does not: the
-- look's own row counts it.
CREATE TRIGGER pass_takes_in AFTER INSERT ON objects WHEN NEW.state < 4 AND NEW.pass_id IS NOT NULL
BEGIN
    UPDATE open_passes
    SET open = open + 1, admitted = admitted + 1, admitted_bytes = admitted_bytes + NEW.size
    WHERE pass_id = NEW.pass_id;
END;

-- A key that cannot travel comes to rest where it is met.
CREATE TRIGGER pass_notes_unmovable AFTER INSERT ON objects WHEN NEW.state = 6 AND NEW.pass_id IS NOT NULL
BEGIN
    UPDATE open_passes SET admitted = admitted + 1, admitted_bytes = admitted_bytes + NEW.size
    WHERE pass_id = NEW.pass_id;
    INSERT INTO note_arrival VALUES (NEW.id);
END;

-- The same with a newer version of one that it knew.
CREATE TRIGGER pass_takes_over AFTER UPDATE OF state ON objects
WHEN NEW.pass_id IS NOT OLD.pass_id AND NEW.state <> 4
BEGIN
    UPDATE open_passes
    SET open = open + (NEW.state < 4), admitted = admitted + 1, admitted_bytes = admitted_bytes + NEW.size
    WHERE pass_id = NEW.pass_id;
END;

-- No longer on its way, or on its way for another pass.
CREATE TRIGGER pass_lets_go AFTER UPDATE OF state ON objects
WHEN OLD.state < 4 AND (NEW.state >= 4 OR NEW.pass_id IS NOT OLD.pass_id)
BEGIN
    UPDATE open_passes SET open = open - 1 WHERE pass_id = OLD.pass_id;
END;

-- It came to rest, and not because the destination held it before.
CREATE TRIGGER pass_notes AFTER UPDATE OF state ON objects
WHEN NEW.state >= 4 AND NEW.found = 0 AND (OLD.state < 4 OR NEW.state = 6) AND NEW.pass_id IS NOT NULL
BEGIN
    INSERT INTO note_arrival VALUES (NEW.id);
END;

-- The same where there was no look yet that it could belong to.
CREATE TRIGGER pass_notes_stray AFTER UPDATE OF state ON objects
WHEN NEW.state >= 4 AND NEW.found = 0 AND OLD.state < 4 AND NEW.pass_id IS NULL
BEGIN
    INSERT INTO give_to_newest_pass VALUES (NEW.id, NEW.job_id, NEW.since_ms);
    INSERT INTO note_arrival VALUES (NEW.id);
END;

-- What travels and no look took in: a chunk found on a volume, a resync.
CREATE TRIGGER pass_adopts AFTER INSERT ON objects WHEN NEW.state < 4 AND NEW.pass_id IS NULL
BEGIN
    INSERT INTO give_to_newest_pass VALUES (NEW.id, NEW.job_id, NEW.since_ms);
    UPDATE open_passes SET open = open + 1 WHERE pass_id = (SELECT pass_id FROM objects WHERE id = NEW.id);
END;

-- What was at rest and travels again in the version it had: a retry, a resync.
CREATE TRIGGER pass_rearms AFTER UPDATE OF state ON objects
WHEN OLD.state >= 4 AND NEW.state < 4 AND NEW.pass_id IS OLD.pass_id
BEGIN
    INSERT INTO give_to_newest_pass VALUES (NEW.id, NEW.job_id, NEW.since_ms);
    UPDATE open_passes SET open = open + 1 WHERE pass_id = (SELECT pass_id FROM objects WHERE id = NEW.id);
END;
