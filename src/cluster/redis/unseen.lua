-- Returns users of dead nodes whose calls nobody has handled in time.
-- KEYS[1]  evicted users with unhandled calls, see bury.lua
-- ARGV[1]  now in ms
-- ARGV[2]  the time at which they are reported again, in ms
-- ARGV[3]  the most users to return
-- Returns nodes and users as `node:user`.
local unseen = redis.call('ZRANGEBYSCORE', KEYS[1], '-inf', ARGV[1], 'LIMIT', 0, ARGV[3])
for _, member in ipairs(unseen) do
    redis.call('ZADD', KEYS[1], ARGV[2], member)
end
return unseen
