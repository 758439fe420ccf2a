-- Writes one entry with its expiry; nothing is written if the epoch has moved.
-- KEYS: epoch, entry, live set, request
-- ARGV: epoch, now ms, expires ms, id, request remembered ms (0: no request), field, value ...
local remembered = tonumber(ARGV[5])
if remembered > 0 then
  local known = redis.call('GET', KEYS[4])
  if known then
    -- The first outcome, as this script writes it below: created, then expires.
    return {'known', known:sub(1, 1), '0', known:sub(2)}
  end
end
local epoch = redis.call('GET', KEYS[1]) or ''
if epoch ~= ARGV[1] then return {'moved', epoch} end

local old_expires = redis.call('HGET', KEYS[2], 'expires')
local created = '1'
if old_expires and tonumber(old_expires) > tonumber(ARGV[2]) then created = '0' end

-- ZADD goes first: a script whose first write is allowed without memory (DEL) may write on past
-- maxmemory, and this one must be refused then.
redis.call('ZADD', KEYS[3], ARGV[3], ARGV[4])
-- It has no expiry of its own: a volatile-* policy could evict it alone, and entries that it does not
-- name would be served past an invalidation.
-- DEL takes a vector field of another space along, which HSET would leave standing.
redis.call('DEL', KEYS[2])
redis.call('HSET', KEYS[2], unpack(ARGV, 6))
redis.call('PEXPIREAT', KEYS[2], ARGV[3])

-- Only what the server itself has expired is trimmed, and a bounded number each time.
local time = redis.call('TIME')
local server_now = time[1] * 1000 + math.floor(time[2] / 1000)
local gone = redis.call('ZRANGEBYSCORE', KEYS[3], '-inf', server_now, 'LIMIT', 0, 64)
if #gone > 0 then redis.call('ZREM', KEYS[3], unpack(gone)) end
if remembered > 0 then redis.call('SET', KEYS[4], created .. ARGV[3], 'PX', remembered) end
return {'done', created, tostring(redis.call('ZCOUNT', KEYS[3], '(' .. ARGV[2], '+inf')), ARGV[3]}
