-- Marks ended records as stored, unless they have changed since.
-- KEYS[1]  ended calls whose rows are not stored
-- KEYS[2]  ended calls whose rows are stored, by the time of their removal
-- then the call hashes
-- ARGV     for each call its id, and the version that is stored
for i = 3, #KEYS do
    local id, version = ARGV[2 * i - 5], ARGV[2 * i - 4]
    local current = redis.call('HMGET', KEYS[i], 'l', 'v', 'd')
    if current[1] == '0' and tonumber(current[2]) <= tonumber(version) then
        redis.call('HSET', KEYS[i], 's', '1')
        -- An earlier build has put the call among the deadlines.
        if redis.call('ZREM', KEYS[1], id) == 1 then
            redis.call('ZADD', KEYS[2], current[3] or 0, id)
        end
    end
end
return #KEYS - 2
