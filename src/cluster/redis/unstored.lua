-- Returns ended calls whose rows are not stored, and hides them, twice as long each time. Claims on an ended call are
-- removed when its time is over; stored calls are removed then, too.
-- KEYS[1]  ended calls whose rows are not stored, by the time of the next attempt
-- KEYS[2]  ended calls whose rows are stored, by the time of their removal
-- ARGV[1]  prefix of call keys
-- ARGV[2]  prefix of user keys
-- ARGV[3]  now in ms
-- ARGV[4]  the shortest and
-- ARGV[5]  the longest wait in ms
-- ARGV[6]  the time for which a stored call is kept, in ms
-- ARGV[7]  the most calls to return, and
-- ARGV[8]  to remove
-- ARGV[9]  the most calls that may wait: others are removed
-- ARGV[10] prefix of the hashes of watching nodes
-- Returns 1 if there may be more to return or to remove, else 0; the number that waits; the number that is missing from
-- the history; the records; 1 if a record was gone, whose users are unknown then.
local now = tonumber(ARGV[3])

local function unclaim(id, users)
    for _, name in ipairs(users) do
        local user = name and ARGV[2] .. name
        if user and redis.call('HGET', user, 'call') == id then
            redis.call('HDEL', user, 'call')
            -- As in mark.lua: watchers need the order.
            if redis.call('HLEN', user) == 1 and redis.call('EXISTS', ARGV[10] .. name) == 0 then
                redis.call('DEL', user)
            end
        end
    end
end

local function forget(id, users)
    redis.call('DEL', ARGV[1] .. id)
    unclaim(id, users)
end

local waiting = redis.call('ZCARD', KEYS[1])
local unstored, lost, has_more, gone = {}, 0, 0, 0
if waiting > tonumber(ARGV[9]) then
    local surplus = math.min(waiting - tonumber(ARGV[9]), tonumber(ARGV[8]))
    local popped = redis.call('ZPOPMIN', KEYS[1], surplus)
    for i = 1, #popped, 2 do
        forget(popped[i], redis.call('HMGET', ARGV[1] .. popped[i], 'a', 'b'))
    end
    lost = surplus
end

local ids = redis.call('ZRANGEBYSCORE', KEYS[1], '-inf', now, 'LIMIT', 0, ARGV[7])
for _, id in ipairs(ids) do
    local call = redis.call('HMGET', ARGV[1] .. id, 'l', 'r', 's', 'd', 'a', 'b')
    local over = tonumber(call[4] or now)
    if call[1] == '0' and not call[3] then
        -- It waits for as long again as it has waited since its end.
        local waited = now - (over - ARGV[6])
        local pause = math.max(ARGV[4], math.min(ARGV[5], waited))
        redis.call('ZADD', KEYS[1], now + pause, id)
        if over <= now then
            unclaim(id, { call[5], call[6] })
        end
        unstored[#unstored + 1] = call[2]
    else
        redis.call('ZREM', KEYS[1], id)
        if call[3] then
            redis.call('ZADD', KEYS[2], over, id)
        elseif not call[1] then
            -- Its longest time to live is over.
            lost, gone = lost + 1, 1
        end
    end
end
if #ids > 0 and #ids == tonumber(ARGV[7]) then
    has_more = 1
end

ids = redis.call('ZRANGEBYSCORE', KEYS[2], '-inf', now, 'LIMIT', 0, ARGV[8])
for _, id in ipairs(ids) do
    redis.call('ZREM', KEYS[2], id)
    local call = redis.call('HMGET', ARGV[1] .. id, 's', 'a', 'b', 'v')
    -- It may have changed since.
    if call[1] then
        forget(id, { call[2], call[3] })
    elseif not call[4] then
        gone = 1
    end
end
if #ids == tonumber(ARGV[8]) then
    has_more = 1
end
return { has_more, redis.call('ZCARD', KEYS[1]), lost, unstored, gone }
