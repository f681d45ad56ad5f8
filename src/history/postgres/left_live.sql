-- Newest first: ids are in the order of creation. A process may have died between the row of an end and this.
WITH ended AS (
    DELETE FROM calls_live
    WHERE EXISTS (SELECT FROM calls WHERE calls.id = calls_live.id AND ended_at IS NOT NULL)
)
SELECT record FROM calls_live
WHERE NOT EXISTS (SELECT FROM calls WHERE calls.id = calls_live.id AND ended_at IS NOT NULL)
ORDER BY id DESC
