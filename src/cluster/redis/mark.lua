-- Sets or removes what a node has to do with a user, and answers the user before and after as lines,
-- and the record of its latest call or ''. A claim whose record is gone goes.
-- KEYS[1]  user hash
-- KEYS[2]  the node's set of users
-- KEYS[3]  heartbeats
-- ARGV[1]  prefix of call keys
-- ARGV[2]  user id
-- ARGV[3]  this node's field for its sockets
-- ARGV[4]  this node's field for its watchers
-- ARGV[5]  the field to write: one of the two
-- ARGV[6]  its value; '' removes it
-- ARGV[7]  node id
-- ARGV[8]  the user's new order is above this; '0' for no bound
-- A user's `order` is Redis' time in microseconds, or one more than it was if that is later: an order that was
-- given before Redis lost its data, or before its clock went back, stays an earlier one. 2^53 is in the year 2255.
local before = redis.call('HGETALL', KEYS[1])
local time = redis.call('TIME')
if ARGV[6] == '' then
    redis.call('HDEL', KEYS[1], ARGV[5])
else
    redis.call('HSET', KEYS[1], ARGV[5], ARGV[6])
end
if redis.call('HEXISTS', KEYS[1], ARGV[3]) == 1 or redis.call('HEXISTS', KEYS[1], ARGV[4]) == 1 then
    redis.call('SADD', KEYS[2], ARGV[2])
    -- If it dies before its next heartbeat, it must be known that there are users to be taken off it.
    -- Its heartbeat must find all the same that it was not known: hence the half millisecond.
    if not redis.call('ZSCORE', KEYS[3], ARGV[7]) then
        local now = time[1] * 1000 + math.floor(time[2] / 1000)
        redis.call('ZADD', KEYS[3], now + 0.5, ARGV[7])
    end
else
    redis.call('SREM', KEYS[2], ARGV[2])
end
local claim, record, known = nil, nil, tonumber(ARGV[8])
for at = 1, #before, 2 do
    if before[at] == 'call' then
        claim = before[at + 1]
    elseif before[at] == 'order' then
        known = math.max(known, before[at + 1])
    end
end
local order = math.max(known + 1, time[1] * 1000000 + time[2])
redis.call('HSET', KEYS[1], 'order', string.format('%d', order))
if claim then
    record = redis.call('HGET', ARGV[1] .. claim, 'r')
    if not record then
        redis.call('HDEL', KEYS[1], 'call')
    end
end
local after = redis.call('HGETALL', KEYS[1])
-- Nothing but the counter: the user is nobody's any more.
if #after == 2 then
    redis.call('DEL', KEYS[1])
end
return { table.concat(before, '\n'), table.concat(after, '\n'), record or '' }
