-- $1 kept from. The oldest month that was over before, when it ended, about how many calls it has, how many such
-- months there are, and how many partitions. The names are those that calls_make_partition gives.
WITH months AS (
    SELECT relname AS name, greatest(reltuples, 0)::bigint AS calls,
           relname ~ '^calls_\d{4}_\d{2}$'
               AND relname < 'calls_' || to_char(calls_from_ms($1) AT TIME ZONE 'UTC', 'YYYY_MM') AS is_old
    FROM pg_inherits
    JOIN pg_class ON pg_class.oid = inhrelid
    WHERE inhparent = 'calls'::regclass
)
SELECT name::text, calls,
       calls_to_ms((to_timestamp(substr(name, 7), 'YYYY_MM')::timestamp + interval '1 month') AT TIME ZONE 'UTC')
           AS end_ms,
       (SELECT count(*) FROM months WHERE is_old) AS old,
       (SELECT count(*) FROM months) AS partitions
FROM months
WHERE is_old
ORDER BY name
LIMIT 1
