-- Reads users and their latest calls.
-- KEYS     the users' hashes; then the hashes of the nodes that watch them, if these are wanted: only announcements
--          need those nodes, and a popular user has hundreds
-- ARGV[1]  prefix of call keys
-- ARGV[2]  the number of users
-- Returns for each user: its hash as lines, with a line 'watcher' for each watching node; and the record of its
-- latest call, '' if there is none, '=' if it is the one before.
local answer, before, users = {}, nil, tonumber(ARGV[2])

for i = 1, users do
    local hash = redis.call('HGETALL', KEYS[i])
    local claim, record = nil, ''
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
    for _, node in ipairs(KEYS[users + i] and redis.call('HKEYS', KEYS[users + i]) or {}) do
        hash[#hash + 1], hash[#hash + 2] = 'watcher', node
    end
    answer[2 * i - 1], answer[2 * i] = table.concat(hash, '\n'), record
end
return answer
