-- When each node last said that the calls of its rows without an end were live: they end then if all that
-- knew of them dies.
CREATE TABLE calls_heartbeats (
    node     uuid        NOT NULL PRIMARY KEY,
    alive_at timestamptz NOT NULL
);
