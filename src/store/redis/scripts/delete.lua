-- Deletes entries; counts those that were alive.
-- KEYS: epoch, live set, request, entry ...
-- ARGV: epoch ('' if there is none), now ms, request remembered ms (0: no request), id ...
local remembered = tonumber(ARGV[3])
if remembered > 0 then
  local known = redis.call('GET', KEYS[3])
  if known then return {'known', known} end
end
local epoch = redis.call('GET', KEYS[1]) or ''
if epoch ~= ARGV[1] then return {'moved', epoch} end

local alive = 0
for i = 4, #KEYS do
  local expires = redis.call('HGET', KEYS[i], 'expires')
  if expires and tonumber(expires) > tonumber(ARGV[2]) then alive = alive + 1 end
  redis.call('UNLINK', KEYS[i])
  redis.call('ZREM', KEYS[2], ARGV[i])
end
if remembered > 0 then redis.call('SET', KEYS[3], alive, 'PX', remembered) end
return {'done', tostring(alive)}
