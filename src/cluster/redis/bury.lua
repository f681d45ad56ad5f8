-- Takes users off a node that is dead, and notes of those who had sockets there that their calls are to be seen
-- to. Whom it only watched has not changed.
-- KEYS[1]  the node's set of users
-- KEYS[2]  heartbeats
-- KEYS[3]  users to be seen off: node and user by when somebody hears of them again
-- ARGV[1]  prefix of user keys
-- ARGV[2]  node id
-- ARGV[3]  the node's field for its sockets
-- ARGV[4]  the node's field for its watchers
-- ARGV[5]  how many users at the most
-- ARGV[6]  when somebody hears of them again, in ms
-- ARGV[7]  its last heartbeat was not later if it is dead, by Redis' clock
-- ARGV[8]  or not earlier: it was written before Redis' clock was set back
-- If it has been heard of since, nothing happens.
-- Answers the ids of the users who had sockets there, and whether there may be more: 0 if so; 1 if there were none
-- left and this forgot the node; 2 if that had happened before, or the node is not dead.
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
    redis.call('HDEL', user, ARGV[4])
    -- Nothing but the counter.
    if redis.call('HLEN', user) == 1 and redis.call('HEXISTS', user, 'order') == 1 then
        redis.call('DEL', user)
    end
end
if #users == 0 then
    return { departed, redis.call('ZREM', KEYS[2], ARGV[2]) == 1 and 1 or 2 }
end
return { departed, 0 }
