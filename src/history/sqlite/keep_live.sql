-- ?1 a JSON array of pairs: id and record
INSERT INTO live_calls (id, record)
SELECT value ->> 0, value ->> 1 FROM json_each(?1) WHERE true
ON CONFLICT (id) DO UPDATE SET record = excluded.record
