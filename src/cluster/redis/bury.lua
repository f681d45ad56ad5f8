-- Takes users off a node that is dead, and notes that their calls are to be seen to.
-- KEYS[1]  the node's set of users
-- KEYS[2]  heartbeats
-- KEYS[3]  users to be seen off: node and user by when somebody hears of them again
-- ARGV[1]  prefix of user keys
-- ARGV[2]  node id
-- ARGV[3]  the node's field for its sockets
-- ARGV[4]  the node's field for its watchers
-- ARGV[5]  how many users at the most
-- ARGV[6]  when somebody hears of them again, in ms
-- ARGV[7]  its last heartbeat if it is dead: if it has been heard of since, nothing happens
-- Answers the ids of the users, and 1 if there were none left and this forgot the node, else 0.
local beat = redis.call('ZSCORE', KEYS[2], ARGV[2])
if not beat or tonumber(beat) > tonumber(ARGV[7]) then
    return { {}, 0 }
end
local time = redis.call('TIME')
local now_us = time[1] * 1000000 + time[2]
local users = redis.call('SPOP', KEYS[1], ARGV[5])
for _, id in ipairs(users) do
    local user = ARGV[1] .. id
    redis.call('ZADD', KEYS[3], ARGV[6], ARGV[2] .. ':' .. id)
    redis.call('HDEL', user, ARGV[3], ARGV[4])
    -- As in mark.lua.
    local order = math.max((redis.call('HGET', user, 'order') or 0) + 1, now_us)
    redis.call('HSET', user, 'order', string.format('%d', order))
    if redis.call('HLEN', user) == 1 then
        redis.call('DEL', user)
    end
end
if #users == 0 then
    return { users, redis.call('ZREM', KEYS[2], ARGV[2]) }
end
return { users, 0 }
