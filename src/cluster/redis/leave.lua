-- Removes a node, unless there are users on it: then it will be evicted together with them.
-- KEYS[1]  heartbeats
-- KEYS[2]  the node's set of users
-- ARGV[1]  node id
-- Returns 1 if it was removed.
if redis.call('EXISTS', KEYS[2]) == 1 then
    return 0
end
redis.call('ZREM', KEYS[1], ARGV[1])
return 1
