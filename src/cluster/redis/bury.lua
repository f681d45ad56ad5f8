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
-- Answers the ids of the users. When there are none left, the node is forgotten.
local beat = redis.call('ZSCORE', KEYS[2], ARGV[2])
if not beat or tonumber(beat) > tonumber(ARGV[7]) then
    return {}
end
local users = redis.call('SPOP', KEYS[1], ARGV[5])
for _, id in ipairs(users) do
    local user = ARGV[1] .. id
    redis.call('ZADD', KEYS[3], ARGV[6], ARGV[2] .. ':' .. id)
    redis.call('HDEL', user, ARGV[3], ARGV[4])
    redis.call('HINCRBY', user, 'order', 1)
    if redis.call('HLEN', user) == 1 then
        redis.call('DEL', user)
    end
end
if #users == 0 then
    redis.call('ZREM', KEYS[2], ARGV[2])
end
return users
