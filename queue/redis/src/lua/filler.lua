-- Renews or ends the lease of whoever fills. ARGV: the holder, the lease in milliseconds, 'renew', 'done' or 'failed', the
-- mark of the request that was fulfilled, milliseconds until the next sweep. Answers with 1 while the holder holds it.
local base = KEYS[1]
if redis.call('GET', base .. 'filler') ~= ARGV[1] then
  return 0
end
if ARGV[3] == 'renew' then
  redis.call('PEXPIRE', base .. 'filler', ARGV[2])
  return 1
end
redis.call('DEL', base .. 'filler')
if ARGV[3] == 'done' then
  -- A request that came meanwhile is another one's.
  if redis.call('GET', base .. 'refill') == ARGV[4] then
    redis.call('DEL', base .. 'refill')
  end
  redis.call('SET', base .. 'swept', '1', 'PX', ARGV[5])
end
return 1
