-- Writes a record if its version, and the claims on its users, are what they were.
-- KEYS[1]  call hash: v version, r record, l whether it is live, s whether it is stored, a and b
--          the users' ids
-- KEYS[2]  deadlines
-- KEYS[3]  the caller's hash
-- KEYS[4]  the callee's hash
-- ARGV[1]  call id
-- ARGV[2]  the version that it has; '0' if there is none yet
-- ARGV[3]  the version to write
-- ARGV[4]  the record
-- ARGV[5]  '1' if it is live, else '0'
-- ARGV[6]  deadline in ms
-- ARGV[7]  how long to keep the record at the most, in ms
-- ARGV[8]  the caller's id
-- ARGV[9]  the callee's id
-- ARGV[10] the caller's claim as it was, '' for none, '-' to leave it alone
-- ARGV[11] the callee's claim likewise
-- Answers 'conflict' and the record as it is, or 'ok', whether it was live, and both users' hashes.
-- If this very record is there already, its writer has lost the answer: 'ok' again, and '?'.
local current = redis.call('HMGET', KEYS[1], 'v', 'r', 'l')
if current[1] == ARGV[3] and current[2] == ARGV[4] then
    return { 'ok', '?', redis.call('HGETALL', KEYS[3]), redis.call('HGETALL', KEYS[4]) }
end
if (current[1] or '0') ~= ARGV[2] then
    return { 'conflict', current[2] or '' }
end
for i = 0, 1 do
    local was = ARGV[10 + i]
    if was ~= '-' and (redis.call('HGET', KEYS[3 + i], 'call') or '') ~= was then
        return { 'conflict', current[2] or '' }
    end
end
redis.call('HSET', KEYS[1], 'v', ARGV[3], 'r', ARGV[4], 'l', ARGV[5], 'a', ARGV[8], 'b', ARGV[9])
redis.call('HDEL', KEYS[1], 's')
redis.call('PEXPIRE', KEYS[1], ARGV[7])
redis.call('ZADD', KEYS[2], ARGV[6], ARGV[1])
for i = 0, 1 do
    if ARGV[10 + i] ~= '-' then
        redis.call('HSET', KEYS[3 + i], 'call', ARGV[1])
    end
    if redis.call('EXISTS', KEYS[3 + i]) == 1 then
        redis.call('HINCRBY', KEYS[3 + i], 'order', 1)
    end
end
return { 'ok', current[3] or '0', redis.call('HGETALL', KEYS[3]), redis.call('HGETALL', KEYS[4]) }
