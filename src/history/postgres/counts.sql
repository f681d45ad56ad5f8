-- $1 since, $2 until, $3 length of a bucket, all in ms
SELECT calls_to_ms(created_at) / $3 * $3 AS bucket, call_type, status, end_reason,
       count(*) AS calls
FROM calls
WHERE created_at >= calls_from_ms($1) AND created_at < calls_from_ms($2)
GROUP BY 1, 2, 3, 4
