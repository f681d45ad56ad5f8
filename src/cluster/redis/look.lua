-- Reads users and their latest calls.
-- KEYS[i]  user hash
-- ARGV[1]  prefix of call keys
-- ARGV[2]  '1' if the nodes that watch the users are wanted: only announcements need those nodes, and a
--          popular user has hundreds
-- Returns for each user: its hash as lines, and the record of its latest call; '' if there is none,
-- '=' if it is the one before.
local answer, before = {}, nil

local function without_watchers(user)
    local fields, cursor = {}, '0'
    repeat
        -- All but `watch:…`.
        local scanned = redis.call('HSCAN', user, cursor, 'MATCH', '[^w]*', 'COUNT', 1000)
        cursor = scanned[1]
        for _, text in ipairs(scanned[2]) do
            fields[#fields + 1] = text
        end
    until cursor == '0'
    return fields
end

for i = 1, #KEYS do
    local hash = ARGV[2] == '1' and redis.call('HGETALL', KEYS[i]) or without_watchers(KEYS[i])
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
    answer[2 * i - 1], answer[2 * i] = table.concat(hash, '\n'), record
end
return answer
