-- ?1 and ?9 the two users, ?2 status, ?3 type, ?4 since, ?5 until, ?6 and ?7 the place (created_at, id) after which
-- to go on, ?8 limit.
-- Two walks along one index, merged.
SELECT * FROM (
    SELECT * FROM (
        SELECT id, caller, receiver, call_type, status, end_reason, duration, started_at, ended_at,
               created_at, updated_at, version
        FROM calls
        WHERE caller = ?1 AND receiver = ?9
          AND (?2 IS NULL OR status = ?2)
          AND (?3 IS NULL OR call_type = ?3)
          AND created_at >= ?4 AND created_at < ?5
          AND (created_at, id) < (?6, ?7)
        ORDER BY created_at DESC, id DESC
        LIMIT ?8
    )
    UNION ALL
    SELECT * FROM (
        SELECT id, caller, receiver, call_type, status, end_reason, duration, started_at, ended_at,
               created_at, updated_at, version
        FROM calls
        WHERE caller = ?9 AND receiver = ?1
          AND (?2 IS NULL OR status = ?2)
          AND (?3 IS NULL OR call_type = ?3)
          AND created_at >= ?4 AND created_at < ?5
          AND (created_at, id) < (?6, ?7)
        ORDER BY created_at DESC, id DESC
        LIMIT ?8
    )
)
ORDER BY created_at DESC, id DESC
LIMIT ?8
