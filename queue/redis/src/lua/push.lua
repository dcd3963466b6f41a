-- Says that jobs are queued. ARGV: incarnation, ageing, then id and record of each. Idempotent by id and generation (rule
-- 13). Answers with how many were new, or with -1 when the memory is not the one that the caller knows.
if not is_known() then
  return -1
end
local added = 0
for at = 3, #ARGV, 2 do
  local id, record = ARGV[at], ARGV[at + 1]
  local job = parse(record)
  if not job then
    return redis.error_reply('FETTLER a push holds a record that cannot be read')
  end
  local known = redis.call('HGET', JOBS, id)
  local old = parse(known)
  if redis.call('ZSCORE', FLIGHT, id) then
    -- Whoever holds it may be about to say that the ledger refused it: then it is queued again.
    if not old or job.generation >= old.generation then
      redis.call('HSET', AGAIN, id, record)
    end
  elseif not old then
    enqueue(id, record, job)
    added = added + 1
  elseif job.generation >= old.generation then
    local is_queued = redis.call('ZSCORE', queue_key(old.slot, old.kind, old.tenant), id)
    if known ~= record or not is_queued then
      dequeue(id, old)
      enqueue(id, record, job)
      added = added + 1
    end
  end
end
if added > 0 then
  ring_bell()
end
return added
