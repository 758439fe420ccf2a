-- Returns the epoch of a namespace, starting one if there is none. It starts at the server's
-- time in microseconds, so that an epoch is never used twice, not even after its key was lost.
-- KEYS: epoch
local epoch = redis.call('GET', KEYS[1])
if not epoch then
  local time = redis.call('TIME')
  epoch = string.format('%.0f', time[1] * 1000000 + time[2])
  redis.call('SET', KEYS[1], epoch)
end
return epoch
