-- Returns ids and scores of live entries after a position, by expiry and id.
-- KEYS: live set
-- ARGV: now ms, count, after expires ms ('' at the start), after id
local start = redis.call('ZCOUNT', KEYS[1], '-inf', ARGV[1])
if ARGV[3] ~= '' then
  -- Members of one score stand in the order of their ids: a binary search among them finds the
  -- first one behind the position, even if the entry at the position is gone.
  local low = redis.call('ZCOUNT', KEYS[1], '-inf', '(' .. ARGV[3])
  local high = redis.call('ZCOUNT', KEYS[1], '-inf', ARGV[3])
  while low < high do
    local middle = math.floor((low + high) / 2)
    if redis.call('ZRANGE', KEYS[1], middle, middle)[1] <= ARGV[4] then
      low = middle + 1
    else
      high = middle
    end
  end
  if low > start then start = low end
end
local found = redis.call('ZRANGE', KEYS[1], start, start + ARGV[2] - 1, 'WITHSCORES')
-- In RESP3 scores would come as doubles; text is exact.
for i = 2, #found, 2 do found[i] = string.format('%.0f', tonumber(found[i])) end
return found
