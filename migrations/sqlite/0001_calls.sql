-- One row a call. Times are Unix milliseconds, durations whole seconds.
CREATE TABLE calls (
    id         TEXT    NOT NULL PRIMARY KEY,
    caller     TEXT    NOT NULL,
    receiver   TEXT    NOT NULL CHECK (receiver <> caller),
    call_type  TEXT    NOT NULL CHECK (call_type IN ('audio', 'video')),
    status     TEXT    NOT NULL
        CHECK (status IN ('pending', 'answered', 'rejected', 'missed', 'ended')),
    end_reason TEXT
        CHECK (end_reason IN ('completed', 'declined', 'cancelled', 'no_answer', 'busy', 'offline',
                              'connection_lost', 'superseded', 'max_duration')),
    duration   INTEGER CHECK (duration >= 0),
    started_at INTEGER,
    ended_at   INTEGER,
    created_at INTEGER NOT NULL,
    updated_at INTEGER NOT NULL,
    version    INTEGER NOT NULL CHECK (version > 0),
    CHECK ((ended_at IS NULL) = (status IN ('pending', 'answered'))),
    CHECK ((end_reason IS NULL) = (ended_at IS NULL)),
    CHECK ((duration IS NULL) = (started_at IS NULL OR ended_at IS NULL))
) STRICT, WITHOUT ROWID;

-- "My calls, newest first": those that I made, and those that I got.
CREATE INDEX calls_by_caller ON calls (caller, created_at DESC, id DESC);
CREATE INDEX calls_by_receiver ON calls (receiver, created_at DESC, id DESC);
-- The calls that a node left behind when it stopped.
CREATE INDEX calls_open ON calls (id) WHERE ended_at IS NULL;
