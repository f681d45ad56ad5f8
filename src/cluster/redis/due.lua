-- Returns live calls whose deadline has passed, and hides them for a lease. Ended calls, which earlier builds put
-- here, move to the set of ended calls.
-- KEYS[1]  deadlines
-- KEYS[2]  ended calls whose rows are not stored
-- KEYS[3]  ended calls whose rows are stored, by the time of their removal
-- ARGV[1]  prefix of call keys
-- ARGV[2]  now in ms
-- ARGV[3]  when the lease ends, in ms
-- ARGV[4]  the most calls to return
-- Returns 1 if there may be more, else 0; the records; 1 if a record was gone, whose users are unknown then.
local ids = redis.call('ZRANGEBYSCORE', KEYS[1], '-inf', ARGV[2], 'LIMIT', 0, ARGV[4])
local due, gone = {}, 0
for _, id in ipairs(ids) do
    local call = redis.call('HMGET', ARGV[1] .. id, 'l', 'r', 's')
    if call[1] == '1' then
        redis.call('ZADD', KEYS[1], ARGV[3], id)
        due[#due + 1] = call[2]
    else
        redis.call('ZREM', KEYS[1], id)
        if call[2] then
            redis.call('ZADD', call[3] and KEYS[3] or KEYS[2], ARGV[2], id)
        else
            gone = 1
        end
    end
end
return { #ids == tonumber(ARGV[4]) and 1 or 0, due, gone }
