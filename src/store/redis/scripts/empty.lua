-- Empties a namespace by moving its epoch on; the old epoch is noted for the sweeper.
-- KEYS: epoch, live set, request, sweep set
-- ARGV: epoch ('' if there is none), now ms, request remembered ms (0: no request), sweep remembered ms
local remembered = tonumber(ARGV[3])
if remembered > 0 then
  local known = redis.call('GET', KEYS[3])
  if known then return {'known', known, ''} end
end
local epoch = redis.call('GET', KEYS[1]) or ''
if epoch ~= ARGV[1] then return {'moved', epoch} end
if epoch == '' then
  if remembered > 0 then redis.call('SET', KEYS[3], 0, 'PX', remembered) end
  return {'done', '0', ''}
end

local alive = redis.call('ZCOUNT', KEYS[2], '(' .. ARGV[2], '+inf')
local time = redis.call('TIME')
local next_epoch = math.max(time[1] * 1000000 + time[2], tonumber(epoch) + 1)
local text = string.format('%.0f', next_epoch)
-- DEL goes first: it is allowed without memory, and so is what a script writes after it. Emptying
-- is how memory is won back.
redis.call('DEL', KEYS[1])
redis.call('SET', KEYS[1], text)
redis.call('SADD', KEYS[4], epoch)
-- The old live set is only read by the sweeper from here on, and goes even if none comes.
redis.call('PEXPIRE', KEYS[2], ARGV[4])
redis.call('PEXPIRE', KEYS[4], ARGV[4])
if remembered > 0 then redis.call('SET', KEYS[3], alive, 'PX', remembered) end
return {'done', tostring(alive), text}
