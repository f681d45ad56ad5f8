-- The server's time in ms, its version, and whether it only reads.
SELECT (extract(epoch FROM clock_timestamp()) * 1000)::bigint AS now,
       current_setting('server_version') AS version,
       current_setting('server_version_num')::bigint AS number,
       pg_is_in_recovery() AS is_standby
