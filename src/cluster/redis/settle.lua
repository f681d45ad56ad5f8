-- Notes that ended records are stored, unless they have changed since.
-- KEYS[i]  call hash
-- ARGV[i]  the version that is stored
for i = 1, #KEYS do
    local current = redis.call('HMGET', KEYS[i], 'l', 'v')
    if current[1] == '0' and tonumber(current[2]) <= tonumber(ARGV[i]) then
        redis.call('HSET', KEYS[i], 's', '1')
    end
end
return #KEYS
