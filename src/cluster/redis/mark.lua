-- Writes a node's entries for users, and returns the users' presence. Removes claims without a record.
-- KEYS[1]  the node's set of users
-- KEYS[2]  heartbeats
-- KEYS[3…] for each user: its hash, and the hash of the nodes that watch it: a small hash takes a third of the
--          memory of a small set
-- ARGV[1]  prefix of call keys
-- ARGV[2]  node id
-- ARGV[3]  this node's field for its sockets
-- ARGV[4]  '1' to return the records of the users' latest calls
-- ARGV[5]  the users' new orders are above this; '0' for no bound
-- then for each user: its id, its number of sockets on this node ('' for none, '=' for no change), '1' if this node
--          watches it, else ''
-- Returns for each user, in a list: whether its latest call is live, whether it had a socket on any
-- node, and whether it has one now, each as 1 or 0; its order; the nodes that watch it if
-- the last two differ; the record of its latest call if requested. Neither the work nor the
-- reply grows with the number of watching nodes as long as nothing changes for them.
-- A user's `order` is Redis' time in microseconds, or one more than it was if that is later: an order that was
-- given before Redis lost its data, or before its clock went back, stays an earlier one. 2^53 is in the year 2255.
local node, sockets_field, after = ARGV[2], ARGV[3], tonumber(ARGV[5])
local time = redis.call('TIME')
local now_us = time[1] * 1000000 + time[2]

local function is_elsewhere(user, known)
    if redis.call('HLEN', user) == known then
        return false
    end
    for _, name in ipairs(redis.call('HKEYS', user)) do
        if name ~= sockets_field and string.sub(name, 1, 5) == 'node:' then
            return true
        end
    end
    return false
end

local function bit(flag)
    return flag and 1 or 0
end

local answer, here, gone = {}, {}, {}
for i = 3, #KEYS, 2 do
    local user, watchers, at = KEYS[i], KEYS[i + 1], (i - 3) / 2
    local id, sockets, watched = unpack(ARGV, 3 * at + 6, 3 * at + 8)
    local was = redis.call('HMGET', user, sockets_field, 'call', 'order')
    local order = string.format('%d', math.max(math.max(after, was[3] or 0) + 1, now_us))
    sockets = sockets == '=' and was[1] or sockets ~= '=' and sockets or ''
    local known = bit(was[1]) + bit(was[2]) + bit(was[3])
    local was_here, is_here = was[1] and true or false, sockets ~= ''
    local elsewhere = not (was_here and is_here) and is_elsewhere(user, known)
    local was_online, is_online = was_here or elsewhere, is_here or elsewhere

    if is_here then
        redis.call('HSET', user, 'order', order, sockets_field, sockets)
    else
        redis.call('HSET', user, 'order', order)
        if was_here then
            redis.call('HDEL', user, sockets_field)
        end
    end
    if watched == '1' then
        redis.call('HSET', watchers, node, '1')
    else
        redis.call('HDEL', watchers, node)
    end
    local is_known = is_here or watched == '1'
    local known_ids = is_known and here or gone
    known_ids[#known_ids + 1] = id
    -- A claim without a record is removed.
    local call = was[2] and redis.call('HMGET', ARGV[1] .. was[2], 'l', 'r') or {}
    if was[2] and not call[2] then
        redis.call('HDEL', user, 'call')
    end
    -- The hash has only the order left: the user has no sockets or calls. Watchers need the order.
    if not is_known and redis.call('HLEN', user) == 1 and redis.call('EXISTS', watchers) == 0 then
        redis.call('DEL', user)
    end

    answer[at + 1] = {
        bit(call[1] == '1'),
        bit(was_online),
        bit(is_online),
        order,
        was_online ~= is_online and redis.call('HKEYS', watchers) or {},
        ARGV[4] == '1' and call[2] or '',
    }
end

if #here > 0 then
    redis.call('SADD', KEYS[1], unpack(here))
    -- If the node dies before its next heartbeat, others must know that it has users to evict. Nevertheless its
    -- heartbeat must detect that the node was forgotten: hence the half millisecond.
    if not redis.call('ZSCORE', KEYS[2], node) then
        local now = time[1] * 1000 + math.floor(time[2] / 1000)
        redis.call('ZADD', KEYS[2], now + 0.5, node)
    end
end
if #gone > 0 then
    redis.call('SREM', KEYS[1], unpack(gone))
end
return answer
