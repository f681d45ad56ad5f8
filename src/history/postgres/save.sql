-- Arrays with one element a row, each call once. Of two versions of a row the newer stays; an end
-- that was assumed for a call of the same version gives way to nothing but a newer one.
INSERT INTO calls (id, caller, receiver, call_type, status, end_reason, duration, started_at,
                   ended_at, created_at, updated_at, version, timeline)
SELECT id::uuid, caller, receiver, call_type, status, end_reason, duration,
       calls_from_ms(started_ms), calls_from_ms(ended_ms), calls_from_ms(created_ms),
       calls_from_ms(updated_ms), version, timeline::jsonb
FROM UNNEST($1::text[], $2::text[], $3::text[], $4::text[], $5::text[], $6::text[], $7::bigint[],
            $8::bigint[], $9::bigint[], $10::bigint[], $11::bigint[], $12::bigint[], $13::text[])
    AS new (id, caller, receiver, call_type, status, end_reason, duration, started_ms, ended_ms,
            created_ms, updated_ms, version, timeline)
-- Two nodes that write the same rows take their locks in one order.
ORDER BY id
ON CONFLICT (id, created_at) DO UPDATE
SET status     = excluded.status,
    end_reason = excluded.end_reason,
    duration   = excluded.duration,
    started_at = excluded.started_at,
    ended_at   = excluded.ended_at,
    updated_at = excluded.updated_at,
    version    = excluded.version,
    timeline   = excluded.timeline
WHERE excluded.version > calls.version
   OR (excluded.version = calls.version AND calls.ended_at IS NULL)
