-- When each process last said that the calls of its rows without an end were live: they end then if it dies.
CREATE TABLE heartbeats (
    node     TEXT    NOT NULL PRIMARY KEY,
    alive_at INTEGER NOT NULL
) STRICT, WITHOUT ROWID;

-- The whole records of the calls that live in this process alone: the next one takes them up again.
CREATE TABLE live_calls (
    id     TEXT NOT NULL PRIMARY KEY,
    record TEXT NOT NULL
) STRICT, WITHOUT ROWID;
