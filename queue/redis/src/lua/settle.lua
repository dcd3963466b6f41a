-- Ends deliveries. ARGV: incarnation, ageing, milliseconds until those that wait come back, then id, generation and verdict
-- of each: 'c' the ledger has claimed it, 'r' the ledger has refused it, 'w' neither: it waits. From a claim or a refusal on
-- the ledger alone knows the job (rule 13), unless it said meanwhile that the job is claimable again.
if not is_known() then
  return -1
end
local again = 0
for at = 4, #ARGV, 3 do
  local id, generation, verdict = ARGV[at], tonumber(ARGV[at + 1]), ARGV[at + 2]
  local old = parse(redis.call('HGET', JOBS, id))
  if not old or old.generation > generation then
    -- Another delivery's, or forgotten.
  elseif verdict == 'w' then
    if redis.call('ZSCORE', FLIGHT, id) then
      redis.call('ZADD', FLIGHT, now + tonumber(ARGV[3]) * 1000, id)
    end
  else
    if redis.call('ZREM', FLIGHT, id) == 0 then
      dequeue(id, old)
    end
    redis.call('HDEL', JOBS, id)
    local record = redis.call('HGET', AGAIN, id)
    if record then
      redis.call('HDEL', AGAIN, id)
      local job = parse(record)
      if job and (verdict == 'r' or job.generation > generation) then
        enqueue(id, record, job)
        again = again + 1
      end
    end
  end
end
if again > 0 then
  ring_bell()
end
return again
