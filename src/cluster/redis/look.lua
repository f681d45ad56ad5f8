-- Reads users and their latest calls.
-- KEYS[i]  user hash
-- ARGV[1]  prefix of call keys
-- Returns for each user: its hash as lines, and the record of its latest call; '' if there is none,
-- '=' if it is the one before.
local answer, before = {}, nil
for i = 1, #KEYS do
    local hash, claim, record = redis.call('HGETALL', KEYS[i]), nil, ''
    for at = 1, #hash, 2 do
        if hash[at] == 'call' then
            claim = hash[at + 1]
        end
    end
    if claim and claim == before then
        record = '='
    elseif claim then
        record = redis.call('HGET', ARGV[1] .. claim, 'r') or ''
    end
    before = claim
    answer[2 * i - 1], answer[2 * i] = table.concat(hash, '\n'), record
end
return answer
