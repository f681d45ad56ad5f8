-- Notes that ended records are stored.
-- KEYS[i]  call hash
for i = 1, #KEYS do
    if redis.call('HGET', KEYS[i], 'l') == '0' then
        redis.call('HSET', KEYS[i], 's', '1')
    end
end
return #KEYS
