-- Notes that a node lives, by Redis' clock.
-- KEYS[1]  heartbeats
-- ARGV[1]  node id
-- Answers 1 if the node was not known, else 0; and the time in ms.
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
return { redis.call('ZADD', KEYS[1], now, ARGV[1]), now }
