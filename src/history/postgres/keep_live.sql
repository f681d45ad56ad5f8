-- $1 ids and $2 records of live calls, $3 ids of ended ones
WITH ended AS (
    DELETE FROM calls_live WHERE id = ANY ($3::uuid[])
)
INSERT INTO calls_live (id, record)
SELECT id::uuid, record FROM UNNEST($1::text[], $2::text[]) AS new (id, record)
ON CONFLICT (id) DO UPDATE SET record = excluded.record
