-- $1 now in ms, $2 for how many months ahead. The partitions that make_ahead would make, whether their name is taken,
-- and whether this user may make them.
WITH months AS (
    SELECT 'calls_' || to_char((calls_from_ms($1) + month * interval '1 month') AT TIME ZONE 'UTC', 'YYYY_MM') AS name
    FROM generate_series(0, $2) AS month
)
SELECT name, to_regclass(name) IS NOT NULL AS is_taken,
       has_schema_privilege(current_schema(), 'CREATE') AS may_be_made
FROM months
WHERE NOT calls_has_partition(name)
ORDER BY name
