-- Reads users and their latest calls.
-- KEYS[i]  user hash
-- ARGV[1]  prefix of call keys
-- Answers for each user: its hash as a flat list, and the record of its latest call or ''.
local answer = {}
for i = 1, #KEYS do
    local claim = redis.call('HGET', KEYS[i], 'call')
    answer[2 * i - 1] = redis.call('HGETALL', KEYS[i])
    answer[2 * i] = claim and redis.call('HGET', ARGV[1] .. claim, 'r') or ''
end
return answer
