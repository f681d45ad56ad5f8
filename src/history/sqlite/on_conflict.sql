-- Of two versions of a row the newer stays; an end that was assumed for a call of the same version
-- gives way to nothing but a newer one.
ON CONFLICT (id) DO UPDATE
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
