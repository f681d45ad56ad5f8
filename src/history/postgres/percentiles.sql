-- $1 since, $2 until, $3 length of a bucket, all in ms. Of answered calls: how long they rang in ms,
-- and how long they lasted in seconds.
SELECT bucket,
       ring[1] AS ring_p50, ring[2] AS ring_p90, ring[3] AS ring_p99,
       lasted[1] AS lasted_p50, lasted[2] AS lasted_p90, lasted[3] AS lasted_p99
FROM (
    SELECT calls_to_ms(created_at) / $3 * $3 AS bucket,
           percentile_disc(ARRAY[0.5, 0.9, 0.99])
               WITHIN GROUP (ORDER BY calls_to_ms(started_at) - calls_to_ms(created_at)) AS ring,
           percentile_disc(ARRAY[0.5, 0.9, 0.99]) WITHIN GROUP (ORDER BY duration) AS lasted
    FROM calls
    WHERE created_at >= calls_from_ms($1) AND created_at < calls_from_ms($2)
      AND started_at IS NOT NULL
    GROUP BY 1
) AS answered
