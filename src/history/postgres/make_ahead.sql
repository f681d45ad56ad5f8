-- $1 now in ms, $2 for how many months ahead
SELECT calls_make_partition(calls_from_ms($1) + month * interval '1 month')
FROM generate_series(0, $2) AS month
