-- Signs a node off, unless there are users on it: then it is left to be buried, and they with it.
-- KEYS[1]  heartbeats
-- KEYS[2]  the node's set of users
-- ARGV[1]  node id
-- Answers 1 if it was signed off.
if redis.call('EXISTS', KEYS[2]) == 1 then
    return 0
end
redis.call('ZREM', KEYS[1], ARGV[1])
return 1
