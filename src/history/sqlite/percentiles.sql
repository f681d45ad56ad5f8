-- ?1 since, ?2 until, ?3 length of a bucket, all in ms. Of answered calls: how long they rang in ms,
-- and how long they lasted in seconds: of n in order, the first at or past the share of them.
WITH answered AS (
    SELECT created_at / ?3 * ?3 AS bucket, started_at - created_at AS ring, duration
    FROM calls
    WHERE created_at >= ?1 AND created_at < ?2 AND started_at IS NOT NULL
),
ranked AS (
    SELECT bucket, ring, duration,
           row_number() OVER (PARTITION BY bucket ORDER BY ring) AS ring_rank,
           count(*) OVER (PARTITION BY bucket) AS rings,
           row_number() OVER (PARTITION BY bucket, duration IS NULL ORDER BY duration) AS lasted_rank,
           count(duration) OVER (PARTITION BY bucket) AS ends
    FROM answered
)
SELECT bucket,
       min(ring) FILTER (WHERE ring_rank * 100 >= rings * 50) AS ring_p50,
       min(ring) FILTER (WHERE ring_rank * 100 >= rings * 90) AS ring_p90,
       min(ring) FILTER (WHERE ring_rank * 100 >= rings * 99) AS ring_p99,
       min(duration) FILTER (WHERE lasted_rank * 100 >= ends * 50) AS lasted_p50,
       min(duration) FILTER (WHERE lasted_rank * 100 >= ends * 90) AS lasted_p90,
       min(duration) FILTER (WHERE lasted_rank * 100 >= ends * 99) AS lasted_p99
FROM ranked
GROUP BY bucket
