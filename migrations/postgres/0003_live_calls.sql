-- The whole records of the calls that live in a single process without Redis: the next one resumes them.
CREATE TABLE calls_live (
    id     uuid NOT NULL PRIMARY KEY,
    record text NOT NULL
);
