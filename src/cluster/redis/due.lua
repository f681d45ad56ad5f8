-- Takes calls whose deadline has passed. Those that are stored go; the others are answered, and fall due
-- again after a lease. The claims that lead to ended calls go with the first deadline.
-- KEYS[1]  deadlines
-- ARGV[1]  prefix of call keys
-- ARGV[2]  prefix of user keys
-- ARGV[3]  now in ms
-- ARGV[4]  when the lease of a live call ends, in ms
-- ARGV[5]  the same for one that has ended
-- ARGV[6]  how many at the most
-- Answers the records, and '1' if one was gone: it cannot be said whose claims led to it.
local due, is_gone = {}, '0'
for _, id in ipairs(redis.call('ZRANGEBYSCORE', KEYS[1], '-inf', ARGV[3], 'LIMIT', 0, ARGV[6])) do
    local key = ARGV[1] .. id
    local call = redis.call('HMGET', key, 'r', 's', 'a', 'b', 'l')
    local is_live = call[1] and not call[2] and call[5] == '1'
    if call[1] and not call[2] then
        redis.call('ZADD', KEYS[1], is_live and ARGV[4] or ARGV[5], id)
        due[#due + 1] = call[1]
    else
        redis.call('DEL', key)
        redis.call('ZREM', KEYS[1], id)
    end
    if not call[1] then
        is_gone = '1'
    end
    for i = 3, 4 do
        local user = not is_live and call[i] and ARGV[2] .. call[i]
        if user and redis.call('HGET', user, 'call') == id then
            redis.call('HDEL', user, 'call')
            if redis.call('HLEN', user) == 1 then
                redis.call('DEL', user)
            end
        end
    end
end
return { due, is_gone }
