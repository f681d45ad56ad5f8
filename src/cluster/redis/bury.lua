-- Removes users from a dead node, and lists those who had sockets there with a lease, until their calls are
-- handled. Presence does not change for users whom the node only watched.
-- KEYS[1]  the node's set of users
-- KEYS[2]  heartbeats
-- KEYS[3]  evicted users with unhandled calls: node and user, by the time at which they are reported again
-- ARGV[1]  prefix of user keys
-- ARGV[2]  node id
-- ARGV[3]  the node's field for its sockets
-- ARGV[4]  prefix of the hashes of watching nodes
-- ARGV[5]  the most users to remove
-- ARGV[6]  the time at which they are reported again, in ms
-- ARGV[7]  the node is dead if its last heartbeat is not later than this, by Redis' clock,
-- ARGV[8]  or not earlier than this: then it was written before Redis' clock was set back
-- Does nothing if the node has sent a heartbeat since.
-- Returns the ids of the users who had sockets there, and 0 if there may be more, 1 if there were none left and the
-- node was removed, 2 if it had been removed before or is not dead.
local beat = redis.call('ZSCORE', KEYS[2], ARGV[2])
if not beat or (tonumber(beat) > tonumber(ARGV[7]) and tonumber(beat) < tonumber(ARGV[8])) then
    return { {}, 2 }
end
local time = redis.call('TIME')
local now_us = time[1] * 1000000 + time[2]
local users, departed = redis.call('SPOP', KEYS[1], ARGV[5]), {}
for _, id in ipairs(users) do
    local user = ARGV[1] .. id
    if redis.call('HDEL', user, ARGV[3]) == 1 then
        departed[#departed + 1] = id
        redis.call('ZADD', KEYS[3], ARGV[6], ARGV[2] .. ':' .. id)
        -- As in mark.lua.
        local order = math.max((redis.call('HGET', user, 'order') or 0) + 1, now_us)
        redis.call('HSET', user, 'order', string.format('%d', order))
    end
    local watchers = ARGV[4] .. id
    redis.call('HDEL', watchers, ARGV[2])
    -- A field of the previous build, which would keep the hash for ever.
    redis.call('HDEL', user, 'watch:' .. ARGV[2])
    -- The hash has only the order left, and nobody watches.
    local is_empty = redis.call('HLEN', user) == 1 and redis.call('HEXISTS', user, 'order') == 1
    if is_empty and redis.call('EXISTS', watchers) == 0 then
        redis.call('DEL', user)
    end
end
if #users == 0 then
    return { departed, redis.call('ZREM', KEYS[2], ARGV[2]) == 1 and 1 or 2 }
end
return { departed, 0 }
