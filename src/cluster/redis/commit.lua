-- Writes a record if its version and its users' claims are unchanged.
-- KEYS[1]  call hash: v version, r record, l whether it is live, s whether it is stored, a and b
--          the users' ids, d its deadline
-- KEYS[2]  deadlines
-- KEYS[3]  the caller's hash
-- KEYS[4]  the callee's hash
-- KEYS[5]  ended calls whose rows are not stored
-- KEYS[6]  ended calls whose rows are stored
-- KEYS[7]  the nodes that watch the caller
-- KEYS[8]  the nodes that watch the callee
-- ARGV[1]  call id
-- ARGV[2]  the expected version; '0' if there must be no record
-- ARGV[3]  the version to write
-- ARGV[4]  the record
-- ARGV[5]  '1' if it is live, else '0'
-- ARGV[6]  the deadline in ms; of an ended call, the time of its removal
-- ARGV[7]  the record's time to live in ms, from its first version on
-- ARGV[8]  the caller's id
-- ARGV[9]  the callee's id
-- ARGV[10] the caller's expected claim, '' for none or one without a record, '-' to leave it alone
-- ARGV[11] the callee's claim likewise
-- ARGV[12] the time from which any node may store an ended call, in ms
-- Returns 'conflict' and the present record, or 'ok', whether the call was live, and both users' hashes as
-- lines, with a line 'watcher' for each node that watches the user. If no presence can have changed, the caller's is
-- '', and the callee's is without these lines.
-- If this very record is there already, its writer has lost the reply: then 'ok' and '?'.
local function lines(hash, watchers)
    for _, node in ipairs(watchers and redis.call('HKEYS', watchers) or {}) do
        hash[#hash + 1], hash[#hash + 2] = 'watcher', node
    end
    return table.concat(hash, '\n')
end

local function read(key, watchers)
    return lines(redis.call('HGETALL', key), watchers)
end

local current = redis.call('HMGET', KEYS[1], 'v', 'r', 'l', 's')
if current[1] == ARGV[3] and current[2] == ARGV[4] then
    return { 'ok', '?', read(KEYS[3], KEYS[7]), read(KEYS[4], KEYS[8]) }
end
if (current[1] or '0') ~= ARGV[2] then
    return { 'conflict', current[2] or '' }
end
local was_live = current[3] or '0'
local is_new = ARGV[10] ~= '-' or ARGV[11] ~= '-'

-- The users whose presence can change: their present hashes, latest calls and orders.
local users = {}
-- A missing record has made its users available without a notification.
if is_new or not current[1] or was_live ~= ARGV[5] then
    local time = redis.call('TIME')
    local now_us = time[1] * 1000000 + time[2]
    for i = 0, 1 do
        local hash, claim, order = redis.call('HGETALL', KEYS[3 + i]), '', 0
        for at = 1, #hash, 2 do
            if hash[at] == 'call' then
                claim = hash[at + 1]
            elseif hash[at] == 'order' then
                order = hash[at + 1]
            end
        end
        if ARGV[10 + i] ~= '-' and ARGV[10 + i] ~= claim then
            -- A record has a time to live, a claim has none: a claim without a record does not count.
            local claimed = string.sub(KEYS[1], 1, -1 - #ARGV[1]) .. claim
            if ARGV[10 + i] ~= '' or redis.call('EXISTS', claimed) == 1 then
                return { 'conflict', current[2] or '' }
            end
        end
        -- As in mark.lua.
        users[i] = { hash = hash, order = string.format('%d', math.max(order + 1, now_us)) }
    end
end

if current[1] then
    redis.call('HSET', KEYS[1], 'v', ARGV[3], 'r', ARGV[4], 'l', ARGV[5], 'd', ARGV[6])
    if current[4] then
        redis.call('HDEL', KEYS[1], 's')
    end
else
    redis.call(
        'HSET', KEYS[1], 'v', ARGV[3], 'r', ARGV[4], 'l', ARGV[5], 'd', ARGV[6], 'a', ARGV[8], 'b', ARGV[9]
    )
    redis.call('PEXPIRE', KEYS[1], ARGV[7])
end
if ARGV[5] == '1' then
    redis.call('ZADD', KEYS[2], ARGV[6], ARGV[1])
    if was_live ~= '1' and current[1] then
        redis.call('ZREM', KEYS[5], ARGV[1])
        redis.call('ZREM', KEYS[6], ARGV[1])
    end
else
    redis.call('ZADD', KEYS[5], ARGV[12], ARGV[1])
    if was_live == '1' then
        redis.call('ZREM', KEYS[2], ARGV[1])
    elseif current[4] then
        redis.call('ZREM', KEYS[6], ARGV[1])
    end
end
if not users[0] then
    return { 'ok', was_live, '', read(KEYS[4]) }
end
-- Of a repeated field the later value counts.
for i = 0, 1 do
    local hash, order, size = users[i].hash, users[i].order, #users[i].hash
    if ARGV[10 + i] ~= '-' then
        redis.call('HSET', KEYS[3 + i], 'call', ARGV[1], 'order', order)
        hash[size + 1], hash[size + 2], hash[size + 3], hash[size + 4] = 'call', ARGV[1], 'order', order
    elseif size > 0 then
        redis.call('HSET', KEYS[3 + i], 'order', order)
        hash[size + 1], hash[size + 2] = 'order', order
    end
end
return { 'ok', was_live, lines(users[0].hash, KEYS[7]), lines(users[1].hash, KEYS[8]) }
