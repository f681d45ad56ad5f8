-- "Calls with X" walks along the calls that one of the two made, and looks at nothing but the index: so
-- each row is written into one index less.
DROP INDEX calls_by_pair;
DROP INDEX calls_by_caller;
CREATE INDEX calls_by_caller ON calls (caller, created_at DESC, id DESC, receiver);
