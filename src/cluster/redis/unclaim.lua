-- Looks a part of all keys through for users whose latest call has no record any more: they have none then.
-- KEYS[1]  deadlines: any key of the slot
-- ARGV[1]  prefix of call keys
-- ARGV[2]  prefix of user keys
-- ARGV[3]  where to go on, '0' to begin
-- ARGV[4]  about how many keys to look at
-- Answers where to go on, '0' at the end.
local scanned = redis.call('SCAN', ARGV[3], 'MATCH', ARGV[2] .. '*', 'COUNT', ARGV[4])
for _, user in ipairs(scanned[2]) do
    local claim = redis.call('HGET', user, 'call')
    if claim and redis.call('EXISTS', ARGV[1] .. claim) == 0 then
        redis.call('HDEL', user, 'call')
        -- Nothing but the counter.
        if redis.call('HLEN', user) == 1 then
            redis.call('DEL', user)
        end
    end
end
return scanned[1]
