-- Writes the offset of the cluster's clock if it is what it was.
-- KEYS[1]  the cluster's clock, see beat.lua
-- ARGV[1]  the offset as it was, or ''
-- ARGV[2]  the offset to write
-- Answers 1 if it was written.
if (redis.call('HGET', KEYS[1], 'o') or '') ~= ARGV[1] then
    return 0
end
redis.call('HSET', KEYS[1], 'o', ARGV[2])
redis.call('HDEL', KEYS[1], 's')
return 1
