-- Writes a node's entries for users, and returns the users' presence. Removes claims without a record.
-- KEYS[1]  the node's set of users
-- KEYS[2]  heartbeats
-- KEYS[3…] user hashes
-- ARGV[1]  prefix of call keys
-- ARGV[2]  node id
-- ARGV[3]  this node's field for its sockets
-- ARGV[4]  this node's field for its watchers
-- ARGV[5]  '1' to return the records of the users' latest calls
-- ARGV[6]  the users' new orders are above this; '0' for no bound
-- then for each user: its id, its number of sockets on this node, '1' if this node watches it; '' for none,
--          '=' for no change
-- Returns for each user, in a list: whether its latest call is live, whether it had a socket on any
-- node, and whether it has one now, each as 1 or 0; its order; the fields of the nodes that watch it if
-- the last two differ; the record of its latest call if requested. Neither the work nor the
-- reply grows with the number of watching nodes as long as nothing changes for them, except for one
-- pass over the names of the fields if the user may have sockets on other nodes only.
-- A user's `order` is Redis' time in microseconds, or one more than it was if that is later: an order that was
-- given before Redis lost its data, or before its clock went back, stays an earlier one. 2^53 is in the year 2255.
local sockets_field, watch_field, after = ARGV[3], ARGV[4], tonumber(ARGV[6])
local time = redis.call('TIME')
local now_us = time[1] * 1000000 + time[2]

local function fields(user, pattern)
    local names, cursor = {}, '0'
    repeat
        local scanned = redis.call('HSCAN', user, cursor, 'MATCH', pattern, 'COUNT', 1000)
        cursor = scanned[1]
        for i = 1, #scanned[2], 2 do
            names[#names + 1] = scanned[2][i]
        end
    until cursor == '0'
    return names
end

local function is_elsewhere(user, known)
    if redis.call('HLEN', user) == known then
        return false
    end
    for _, name in ipairs(fields(user, 'node:*')) do
        if name ~= sockets_field then
            return true
        end
    end
    return false
end

local function bit(flag)
    return flag and 1 or 0
end

local answer, here, gone = {}, {}, {}
for i = 3, #KEYS do
    local user, id, sockets, watched = KEYS[i], unpack(ARGV, 3 * i - 2, 3 * i)
    local was = redis.call('HMGET', user, sockets_field, watch_field, 'call', 'order')
    local order = string.format('%d', math.max(math.max(after, was[4] or 0) + 1, now_us))
    sockets = sockets == '=' and was[1] or sockets ~= '=' and sockets or ''
    watched = watched == '=' and was[2] or watched ~= '=' and watched or ''
    local known = bit(was[1]) + bit(was[2]) + bit(was[3]) + bit(was[4])
    local was_here, is_here = was[1] and true or false, sockets ~= ''
    local elsewhere = not (was_here and is_here) and is_elsewhere(user, known)
    local was_online, is_online = was_here or elsewhere, is_here or elsewhere

    local set, removed = { 'order', order }, {}
    for at, field in ipairs({ sockets_field, watch_field }) do
        local value = at == 1 and sockets or at == 2 and watched
        if value ~= '' then
            set[#set + 1], set[#set + 2] = field, value
        elseif was[at] then
            removed[#removed + 1] = field
        end
    end
    redis.call('HSET', user, unpack(set))
    if #removed > 0 then
        redis.call('HDEL', user, unpack(removed))
    end
    local is_known = is_here or watched ~= ''
    local known_ids = is_known and here or gone
    known_ids[#known_ids + 1] = id
    -- A claim without a record is removed.
    local call = was[3] and redis.call('HMGET', ARGV[1] .. was[3], 'l', 'r') or {}
    if was[3] and not call[2] then
        redis.call('HDEL', user, 'call')
    end
    -- The hash has only the order left: the user has no sockets, watchers or calls.
    if not is_known and redis.call('HLEN', user) == 1 then
        redis.call('DEL', user)
    end

    answer[i - 2] = {
        bit(call[1] == '1'),
        bit(was_online),
        bit(is_online),
        order,
        was_online ~= is_online and fields(user, 'watch:*') or {},
        ARGV[5] == '1' and call[2] or '',
    }
end

if #here > 0 then
    redis.call('SADD', KEYS[1], unpack(here))
    -- If the node dies before its next heartbeat, others must know that it has users to evict. Nevertheless its
    -- heartbeat must detect that the node was forgotten: hence the half millisecond.
    if not redis.call('ZSCORE', KEYS[2], ARGV[2]) then
        local now = time[1] * 1000 + math.floor(time[2] / 1000)
        redis.call('ZADD', KEYS[2], now + 0.5, ARGV[2])
    end
end
if #gone > 0 then
    redis.call('SREM', KEYS[1], unpack(gone))
end
return answer
