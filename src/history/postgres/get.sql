-- $1 id, $2 a party of the call, $3 and $4 between when it was made
SELECT id::text, caller, receiver, call_type, status, end_reason, duration,
       calls_to_ms(started_at) AS started_at, calls_to_ms(ended_at) AS ended_at,
       calls_to_ms(created_at) AS created_at, calls_to_ms(updated_at) AS updated_at, version,
       timeline::text
FROM calls
WHERE id = $1::uuid
  AND $2 IN (caller, receiver)
  AND calls.created_at BETWEEN calls_from_ms($3) AND calls_from_ms($4)
