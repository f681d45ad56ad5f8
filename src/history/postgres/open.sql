-- $1 made before, $2 limit
SELECT id::text, caller, receiver, call_type, status, end_reason, duration,
       calls_to_ms(started_at) AS started_at, calls_to_ms(ended_at) AS ended_at,
       calls_to_ms(created_at) AS created_at, calls_to_ms(updated_at) AS updated_at, version,
       timeline::text
FROM calls
WHERE ended_at IS NULL AND calls.created_at < calls_from_ms($1)
ORDER BY calls.created_at
LIMIT $2
