-- $1 user, $2 status, $3 type, $4 since, $5 until, $6 and $7 the place (created_at, id) after which
-- to go on, $8 limit. Two walks along an index each, merged.
SELECT * FROM (
    (
        SELECT id::text, caller, receiver, call_type, status, end_reason, duration,
               calls_to_ms(started_at) AS started_at, calls_to_ms(ended_at) AS ended_at,
               calls_to_ms(created_at) AS created_at, calls_to_ms(updated_at) AS updated_at, version
        FROM calls
        WHERE caller = $1
          AND ($2::text IS NULL OR status = $2)
          AND ($3::text IS NULL OR call_type = $3)
          AND calls.created_at >= calls_from_ms($4) AND calls.created_at < calls_from_ms($5)
          AND (calls.created_at, calls.id) < (calls_from_ms($6), $7::uuid)
        ORDER BY calls.created_at DESC, calls.id DESC
        LIMIT $8
    )
    UNION ALL
    (
        SELECT id::text, caller, receiver, call_type, status, end_reason, duration,
               calls_to_ms(started_at) AS started_at, calls_to_ms(ended_at) AS ended_at,
               calls_to_ms(created_at) AS created_at, calls_to_ms(updated_at) AS updated_at, version
        FROM calls
        WHERE receiver = $1
          AND ($2::text IS NULL OR status = $2)
          AND ($3::text IS NULL OR call_type = $3)
          AND calls.created_at >= calls_from_ms($4) AND calls.created_at < calls_from_ms($5)
          AND (calls.created_at, calls.id) < (calls_from_ms($6), $7::uuid)
        ORDER BY calls.created_at DESC, calls.id DESC
        LIMIT $8
    )
) AS merged
ORDER BY created_at DESC, id DESC
LIMIT $8
