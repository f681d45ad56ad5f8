-- Adds the timeline, the end by an operator, and the index for "calls with X". SQLite cannot change a
-- check, so the table is made anew.
CREATE TABLE new_calls (
    id         TEXT    NOT NULL PRIMARY KEY,
    caller     TEXT    NOT NULL,
    receiver   TEXT    NOT NULL CHECK (receiver <> caller),
    call_type  TEXT    NOT NULL CHECK (call_type IN ('audio', 'video')),
    status     TEXT    NOT NULL
        CHECK (status IN ('pending', 'answered', 'rejected', 'missed', 'ended')),
    end_reason TEXT
        CHECK (end_reason IN ('completed', 'declined', 'cancelled', 'no_answer', 'busy', 'offline',
                              'connection_lost', 'superseded', 'terminated', 'max_duration')),
    duration   INTEGER CHECK (duration >= 0),
    started_at INTEGER,
    ended_at   INTEGER,
    created_at INTEGER NOT NULL,
    updated_at INTEGER NOT NULL,
    version    INTEGER NOT NULL CHECK (version > 0),
    timeline   TEXT    NOT NULL DEFAULT '[]' CHECK (json_type(timeline) = 'array'),
    CHECK ((ended_at IS NULL) = (status IN ('pending', 'answered'))),
    CHECK ((end_reason IS NULL) = (ended_at IS NULL)),
    CHECK ((duration IS NULL) = (started_at IS NULL OR ended_at IS NULL))
) STRICT, WITHOUT ROWID;

INSERT INTO new_calls (id, caller, receiver, call_type, status, end_reason, duration, started_at,
                       ended_at, created_at, updated_at, version)
SELECT id, caller, receiver, call_type, status, end_reason, duration, started_at,
       ended_at, created_at, updated_at, version
FROM calls;

DROP TABLE calls;
ALTER TABLE new_calls RENAME TO calls;

CREATE INDEX calls_by_caller ON calls (caller, created_at DESC, id DESC);
CREATE INDEX calls_by_receiver ON calls (receiver, created_at DESC, id DESC);
CREATE INDEX calls_by_pair ON calls (caller, receiver, created_at DESC, id DESC);
CREATE INDEX calls_by_time ON calls (created_at);
CREATE INDEX calls_open ON calls (created_at) WHERE ended_at IS NULL;
