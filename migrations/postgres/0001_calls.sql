-- One row a call, in a partition for the month in which it was made.
CREATE TABLE calls (
    id         uuid        NOT NULL,
    caller     text        NOT NULL,
    receiver   text        NOT NULL CHECK (receiver <> caller),
    call_type  text        NOT NULL CHECK (call_type IN ('audio', 'video')),
    status     text        NOT NULL
        CHECK (status IN ('pending', 'answered', 'rejected', 'missed', 'ended')),
    end_reason text
        CHECK (end_reason IN ('completed', 'declined', 'cancelled', 'no_answer', 'busy', 'offline',
                              'connection_lost', 'superseded', 'terminated', 'max_duration')),
    -- Whole seconds from the answer to the end.
    duration   bigint      CHECK (duration >= 0),
    -- When it was answered.
    started_at timestamptz,
    ended_at   timestamptz,
    created_at timestamptz NOT NULL,
    updated_at timestamptz NOT NULL,
    version    bigint      NOT NULL CHECK (version > 0),
    timeline   jsonb       NOT NULL DEFAULT '[]' CHECK (jsonb_typeof(timeline) = 'array'),
    PRIMARY KEY (id, created_at),
    CHECK ((ended_at IS NULL) = (status IN ('pending', 'answered'))),
    CHECK ((end_reason IS NULL) = (ended_at IS NULL)),
    CHECK ((duration IS NULL) = (started_at IS NULL OR ended_at IS NULL))
) PARTITION BY RANGE (created_at);

-- "My calls, newest first": those that I made, and those that I got.
CREATE INDEX calls_by_caller ON calls (caller, created_at DESC, id DESC);
CREATE INDEX calls_by_receiver ON calls (receiver, created_at DESC, id DESC);
-- "Calls with X", newest first.
CREATE INDEX calls_by_pair ON calls (caller, receiver, created_at DESC, id DESC);
-- All calls of a time.
CREATE INDEX calls_by_time ON calls (created_at);
-- Calls whose end nobody has written yet.
CREATE INDEX calls_open ON calls (created_at) WHERE ended_at IS NULL;

-- Times come and go as Unix milliseconds.
CREATE FUNCTION calls_to_ms(at timestamptz) RETURNS bigint
    LANGUAGE sql IMMUTABLE PARALLEL SAFE
    RETURN (extract(epoch FROM at) * 1000)::bigint;

CREATE FUNCTION calls_from_ms(ms bigint) RETURNS timestamptz
    LANGUAGE sql STABLE PARALLEL SAFE
    RETURN timestamptz 'epoch' + ms * interval '1 millisecond';

-- Whether there is a partition with this name. A table with the name may be one no more.
CREATE FUNCTION calls_has_partition(name text) RETURNS boolean
    LANGUAGE sql STABLE
    RETURN EXISTS (
        SELECT FROM pg_inherits
        JOIN pg_class ON pg_class.oid = inhrelid
        WHERE inhparent = 'calls'::regclass AND relname = name AND NOT inhdetachpending
    );

-- Makes the partition for the month (UTC) of this moment, if it is not there.
--
-- A table is made and attached: to create it as a partition would lock all readers out.
CREATE FUNCTION calls_make_partition(at timestamptz) RETURNS void
    LANGUAGE plpgsql SET lock_timeout = '5s' AS $$
DECLARE
    month timestamp := date_trunc('month', at AT TIME ZONE 'UTC');
    name  text      := 'calls_' || to_char(month, 'YYYY_MM');
BEGIN
    IF calls_has_partition(name) THEN
        RETURN;
    END IF;
    PERFORM pg_advisory_xact_lock(hashtextextended('switchboard calls partitions', 0));
    -- Another node may have made it meanwhile.
    IF calls_has_partition(name) THEN
        RETURN;
    END IF;
    IF to_regclass(name) IS NOT NULL THEN
        RAISE object_not_in_prerequisite_state USING MESSAGE = format(
            'the table %s is there, but is not a partition of calls: attach it again, or rename it',
            name);
    END IF;
    EXECUTE format('CREATE TABLE %I (LIKE calls INCLUDING ALL)', name);
    EXECUTE format('ALTER TABLE calls ATTACH PARTITION %I FOR VALUES FROM (%L) TO (%L)', name,
                   month AT TIME ZONE 'UTC', (month + interval '1 month') AT TIME ZONE 'UTC');
EXCEPTION
    WHEN check_violation OR invalid_object_definition THEN
        -- Somebody has made another one for these rows: for more than the month, or by default. If
        -- it does not take all of them, the insert says so.
        RETURN;
END $$;

-- Drops the oldest partition whose month was over before this moment, and answers its name.
--
-- While it waits for a long reader, all others wait behind it: it gives up soon, to be tried again.
-- Only the names that calls_make_partition gives are looked at.
CREATE FUNCTION calls_drop_partition(before timestamptz) RETURNS text
    LANGUAGE plpgsql SET lock_timeout = '100ms' AS $$
DECLARE
    oldest regclass;
    name   text;
BEGIN
    IF NOT pg_try_advisory_xact_lock(hashtextextended('switchboard calls partitions', 0)) THEN
        RETURN NULL;
    END IF;
    SELECT inhrelid, relname INTO oldest, name
    FROM pg_inherits
    JOIN pg_class ON pg_class.oid = inhrelid
    WHERE inhparent = 'calls'::regclass
      AND relname ~ '^calls_\d{4}_\d{2}$'
      AND relname < 'calls_' || to_char(before AT TIME ZONE 'UTC', 'YYYY_MM')
    ORDER BY relname
    LIMIT 1;
    IF name IS NOT NULL THEN
        EXECUTE format('DROP TABLE %s', oldest);
    END IF;
    RETURN name;
END $$;
