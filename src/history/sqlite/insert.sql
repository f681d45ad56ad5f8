INSERT INTO calls (id, caller, receiver, call_type, status, end_reason, duration, started_at,
                   ended_at, created_at, updated_at, version, timeline)
