-- Reads a part of the live calls.
-- KEYS[1]  deadlines
-- ARGV[1]  prefix of call keys
-- ARGV[2]  where to go on, '0' to begin
-- ARGV[3]  about how many calls to look at
-- Answers where to go on, '0' at the end, and the records.
local scanned = redis.call('ZSCAN', KEYS[1], ARGV[2], 'COUNT', ARGV[3])
local live = {}
for i = 1, #scanned[2], 2 do
    local call = redis.call('HMGET', ARGV[1] .. scanned[2][i], 'r', 'l')
    if call[2] == '1' then
        live[#live + 1] = call[1]
    end
end
return { scanned[1], live }
