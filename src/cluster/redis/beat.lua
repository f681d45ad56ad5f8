-- Notes that a node lives, by Redis' clock.
-- KEYS[1]  heartbeats; half a millisecond more: only its users are known, see mark.lua
-- ARGV[1]  node id
-- Answers 1 if the node was not known, else 0; and the time in ms.
local before = redis.call('ZSCORE', KEYS[1], ARGV[1])
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
redis.call('ZADD', KEYS[1], now, ARGV[1])
local was_known = before and tonumber(before) % 1 == 0
return { was_known and 0 or 1, now }
