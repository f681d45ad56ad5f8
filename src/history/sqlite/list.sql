-- ?1 user, ?2 the other party, ?3 status, ?4 type, ?5 since, ?6 until,
-- ?7 and ?8 the place (created_at, id) after which to go on, ?9 limit.
-- Two walks along an index each, merged: an OR over both columns would sort all calls of the user.
SELECT * FROM (
    SELECT * FROM (
        SELECT * FROM calls
        WHERE caller = ?1
          AND (?2 IS NULL OR receiver = ?2)
          AND (?3 IS NULL OR status = ?3)
          AND (?4 IS NULL OR call_type = ?4)
          AND created_at >= ?5 AND created_at < ?6
          AND created_at <= ?7 AND (?8 IS NULL OR created_at < ?7 OR id < ?8)
        ORDER BY created_at DESC, id DESC LIMIT ?9
    )
    UNION ALL
    SELECT * FROM (
        SELECT * FROM calls
        WHERE receiver = ?1
          AND (?2 IS NULL OR caller = ?2)
          AND (?3 IS NULL OR status = ?3)
          AND (?4 IS NULL OR call_type = ?4)
          AND created_at >= ?5 AND created_at < ?6
          AND created_at <= ?7 AND (?8 IS NULL OR created_at < ?7 OR id < ?8)
        ORDER BY created_at DESC, id DESC LIMIT ?9
    )
)
ORDER BY created_at DESC, id DESC LIMIT ?9
