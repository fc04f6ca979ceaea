-- Sandboxes and their execs. Times are microseconds since 1970, UTC; ids are the 16 bytes of a UUID; messages
-- are protobuf bytes. An exec outlives its sandbox (its outcome can still be asked for), so it has no foreign key.

-- "HFst": tells this file from any other program's.
PRAGMA application_id = 1212576628;

CREATE TABLE sandbox (
    id          BLOB    NOT NULL PRIMARY KEY CHECK (length(id) = 16),
    name        TEXT    NOT NULL,
    spec        BLOB    NOT NULL,
    desired     TEXT    NOT NULL CHECK (desired IN ('running', 'stopped', 'paused', 'deleted')),
    grace_ms    INTEGER NOT NULL,
    generation  INTEGER NOT NULL,
    -- The newest generations that the driver has made, and that has had a session.
    made        INTEGER NOT NULL,
    attached    INTEGER NOT NULL,
    epoch       INTEGER NOT NULL,
    driver      TEXT    NOT NULL,
    version     INTEGER NOT NULL,
    created_at  INTEGER NOT NULL,
    last_error  BLOB
) STRICT;

CREATE UNIQUE INDEX sandbox_name ON sandbox (name);

CREATE TABLE exec (
    id                BLOB    NOT NULL PRIMARY KEY CHECK (length(id) = 16),
    sandbox           BLOB    NOT NULL CHECK (length(sandbox) = 16),
    spec_digest       BLOB    NOT NULL,
    command           TEXT    NOT NULL,
    tty               INTEGER NOT NULL,
    on_disconnect     INTEGER NOT NULL,
    retain_ms         INTEGER NOT NULL,
    accepted_at       INTEGER NOT NULL,
    start_deadline_at INTEGER NOT NULL,
    -- To whom the start was sent: all three, or none.
    instance          BLOB    CHECK (instance IS NULL OR length(instance) = 16),
    generation        INTEGER CHECK ((generation IS NULL) = (instance IS NULL)),
    epoch             INTEGER CHECK ((epoch IS NULL) = (instance IS NULL)),
    pid               INTEGER NOT NULL,
    started_at        INTEGER,
    -- The end: outcome, ended_at and retain_until, or none of them.
    outcome           BLOB,
    ended_at          INTEGER CHECK ((ended_at IS NULL) = (outcome IS NULL)),
    retain_until      INTEGER CHECK ((retain_until IS NULL) = (outcome IS NULL)),
    stdout_bytes      INTEGER NOT NULL DEFAULT 0,
    stderr_bytes      INTEGER NOT NULL DEFAULT 0,
    left_processes    INTEGER NOT NULL DEFAULT 0
) STRICT;

CREATE INDEX exec_of_sandbox ON exec (sandbox, accepted_at, id);
CREATE INDEX exec_unfinished ON exec (sandbox, accepted_at, id) WHERE outcome IS NULL;
CREATE INDEX exec_retained ON exec (retain_until) WHERE outcome IS NOT NULL;

CREATE TABLE meta (
    key   TEXT NOT NULL PRIMARY KEY,
    value BLOB NOT NULL
) STRICT;
