-- Takes users of dead nodes whom nobody has seen off in time.
-- KEYS[1]  users to be seen off
-- ARGV[1]  now in ms
-- ARGV[2]  when somebody hears of them again, in ms
-- ARGV[3]  how many at the most
-- Answers nodes and users as `node:user`.
local unseen = redis.call('ZRANGEBYSCORE', KEYS[1], '-inf', ARGV[1], 'LIMIT', 0, ARGV[3])
for _, member in ipairs(unseen) do
    redis.call('ZADD', KEYS[1], ARGV[2], member)
end
return unseen
