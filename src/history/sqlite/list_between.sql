-- ?1 and ?9 the two users, ?2 status, ?3 type, ?4 since, ?5 until, ?6 and ?7 the place (created_at, id) after which
-- to go on, ?8 limit.
-- Two walks along one index, merged. Each finds the places of the calls in the index alone, and only then
-- the calls: a table without row ids is looked into for each entry otherwise.
SELECT * FROM (
    SELECT * FROM (
        SELECT call.id, call.caller, call.receiver, call.call_type, call.status, call.end_reason,
               call.duration, call.started_at, call.ended_at, call.created_at, call.updated_at,
               call.version
        FROM calls AS place CROSS JOIN calls AS call ON call.id = place.id
        WHERE place.caller = ?1 AND place.receiver = ?9
          AND place.created_at >= ?4 AND place.created_at < ?5
          AND (place.created_at, place.id) < (?6, ?7)
          AND (?2 IS NULL OR call.status = ?2)
          AND (?3 IS NULL OR call.call_type = ?3)
        ORDER BY place.created_at DESC, place.id DESC
        LIMIT ?8
    )
    UNION ALL
    SELECT * FROM (
        SELECT call.id, call.caller, call.receiver, call.call_type, call.status, call.end_reason,
               call.duration, call.started_at, call.ended_at, call.created_at, call.updated_at,
               call.version
        FROM calls AS place CROSS JOIN calls AS call ON call.id = place.id
        WHERE place.caller = ?9 AND place.receiver = ?1
          AND place.created_at >= ?4 AND place.created_at < ?5
          AND (place.created_at, place.id) < (?6, ?7)
          AND (?2 IS NULL OR call.status = ?2)
          AND (?3 IS NULL OR call.call_type = ?3)
        ORDER BY place.created_at DESC, place.id DESC
        LIMIT ?8
    )
)
ORDER BY created_at DESC, id DESC
LIMIT ?8
