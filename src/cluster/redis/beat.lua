-- Notes that a node lives, by Redis' clock.
-- KEYS[1]  heartbeats; half a millisecond more: only its users are known, see mark.lua
-- KEYS[2]  the cluster's clock: o offset, s when a node last found it right; see cluster/timekeeper.rs
-- ARGV[1]  node id
-- ARGV[2]  when this node last found the offset right, by Redis' clock; '' if it did not. A heartbeat that was held up
--          for long confirms nothing: Redis' clock may have been set meanwhile
-- ARGV[3]  that offset
-- ARGV[4]  how long a node that is dead was silent at least, in ms
-- Answers 1 if the node was not known, else 0; the time in ms; the offset, or ''; when it was last found right, or
-- ''; the dead nodes; how many keys Redis has evicted since it started, or '' if it does not say. A heartbeat from the
-- future was written before Redis' clock was set back, by a node that has not been heard of since.
local before = redis.call('ZSCORE', KEYS[1], ARGV[1])
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
redis.call('ZADD', KEYS[1], now, ARGV[1])
local was_known = before and tonumber(before) % 1 == 0
local clock = redis.call('HMGET', KEYS[2], 'o', 's')
local offset, found = clock[1] or '', clock[2] or ''
local age = now - (tonumber(ARGV[2]) or 0)
if ARGV[2] ~= '' and ARGV[3] == offset and ARGV[2] ~= found and age >= 0 and age <= 5000 then
    redis.call('HSET', KEYS[2], 's', ARGV[2])
    found = ARGV[2]
end
local dead = redis.call('ZRANGEBYSCORE', KEYS[1], '-inf', now - ARGV[4])
for _, node in ipairs(redis.call('ZRANGEBYSCORE', KEYS[1], now + 1000, '+inf')) do
    dead[#dead + 1] = node
end
-- Without the right to INFO it is an error.
local stats = redis.pcall('INFO', 'stats')
local evicted = type(stats) == 'string' and string.match(stats, 'evicted_keys:(%d+)') or ''
return { was_known and 0 or 1, now, offset, found, dead, evicted }
