-- Scans a part of all keys, and repairs what leads from one to another: a key may have been evicted, or may have
-- expired before its time.
-- A live call is among the deadlines, and the latest call of its users; an ended one waits for history, or to be
-- forgotten. A claim without a record is removed. A user is in the set of each node that has sockets of it or watches
-- it, and each such node is known, so that it is evicted if it is dead.
-- KEYS[1]  deadlines
-- KEYS[2]  ended calls that history has not got
-- KEYS[3]  ended calls that history has
-- KEYS[4]  heartbeats
-- ARGV[1]  prefix of call keys
-- ARGV[2]  prefix of user keys
-- ARGV[3]  prefix of nodes' sets of users
-- ARGV[4]  prefix of all of them
-- ARGV[5]  where to go on, '0' to begin
-- ARGV[6]  about how many keys to look at
-- ARGV[7]  now in ms, by the cluster's clock
-- ARGV[8]  prefix of the hashes of watching nodes
-- Answers where to go on, '0' at the end; the users whose latest call is another now; the records of live calls one
-- of whose users is in another live call.
local time = redis.call('TIME')
local now_ms, now_us = time[1] * 1000 + math.floor(time[2] / 1000), time[1] * 1000000 + time[2]
local users, displaced = {}, {}

local function begins(key, prefix)
    return string.sub(key, 1, #prefix) == prefix and string.sub(key, #prefix + 1)
end

local function queue(key, score, id)
    redis.call('ZADD', key, 'NX', score, id)
end

-- As in mark.lua.
local function advance(user)
    local order = math.max((redis.call('HGET', user, 'order') or 0) + 1, now_us)
    redis.call('HSET', user, 'order', string.format('%d', order))
end

local function mend_call(key, id)
    local call = redis.call('HMGET', key, 'l', 'd', 's', 'a', 'b', 'r')
    if call[1] == '0' then
        if call[3] then
            queue(KEYS[3], call[2] or 0, id)
        else
            queue(KEYS[2], ARGV[7], id)
        end
    elseif call[1] == '1' then
        queue(KEYS[1], call[2] or 0, id)
        for at = 4, 5 do
            local user = call[at] and ARGV[2] .. call[at]
            local claim = user and redis.call('HGET', user, 'call')
            if user and claim ~= id then
                if claim and redis.call('HGET', ARGV[1] .. claim, 'l') == '1' then
                    displaced[#displaced + 1] = call[6]
                else
                    redis.call('HSET', user, 'call', id)
                    advance(user)
                    users[#users + 1] = call[at]
                end
            end
        end
    end
end

local function mend_node(node, id)
    redis.call('SADD', ARGV[3] .. node, id)
    -- If it lives, its heartbeat must find that it was not known: see mark.lua.
    redis.call('ZADD', KEYS[4], 'NX', now_ms + 0.5, node)
end

local function mend_user(key, id)
    local hash = redis.call('HGETALL', key)
    for at = 1, #hash, 2 do
        local node = begins(hash[at], 'node:')
        if node then
            mend_node(node, id)
        elseif hash[at] == 'call' and redis.call('EXISTS', ARGV[1] .. hash[at + 1]) == 0 then
            redis.call('HDEL', key, 'call')
            -- Nothing but the counter.
            if redis.call('HLEN', key) == 1 and redis.call('EXISTS', ARGV[8] .. id) == 0 then
                redis.call('DEL', key)
            end
        end
    end
end

local function mend_watchers(key, id)
    for _, node in ipairs(redis.call('HKEYS', key)) do
        mend_node(node, id)
    end
end

local scanned = redis.call('SCAN', ARGV[5], 'MATCH', ARGV[4] .. '*', 'COUNT', ARGV[6])
for _, key in ipairs(scanned[2]) do
    local call, user, watched = begins(key, ARGV[1]), begins(key, ARGV[2]), begins(key, ARGV[8])
    if call then
        mend_call(key, call)
    elseif user then
        mend_user(key, user)
    elseif watched then
        mend_watchers(key, watched)
    end
end
return { scanned[1], users, displaced }
