-- Says that jobs are queued. ARGV: incarnation, ageing, then id and record of each. Idempotent by id and generation (rule
-- 13). Answers with how many were new, or with -1 when the memory is not the one that the caller knows.
if not is_known() then
  return -1
end
local ids, records, jobs = {}, {}, {}
for at = 3, #ARGV, 2 do
  local job = parse(ARGV[at + 1])
  if not job then
    return redis.error_reply('FETTLER a push holds a record that cannot be read')
  end
  ids[#ids + 1], records[#records + 1], jobs[#jobs + 1] = ARGV[at], ARGV[at + 1], job
end

local added = 0
-- One job, whatever is known of it.
local function push(id, record, job)
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

-- Most are new: those are put into their queues together, and the rest is looked at one by one after that.
local known, flying = each_piece('HMGET', JOBS, ids), each_piece('ZMSCORE', FLIGHT, ids)
local seen, rest, fields, queues = {}, {}, {}, {}
for at, id in ipairs(ids) do
  if known[at] or flying[at] or seen[id] then
    rest[#rest + 1] = at
  else
    local job = jobs[at]
    local key = queue_key(job.slot, job.kind, job.tenant)
    local queue = queues[key]
    if not queue then
      queue = { job = job, members = {} }
      queues[key] = queue
      queues[#queues + 1] = key
    end
    queue.members[#queue.members + 1] = job.rank
    queue.members[#queue.members + 1] = id
    fields[#fields + 1] = id
    fields[#fields + 1] = records[at]
    added = added + 1
  end
  seen[id] = true
end
each_piece('HSET', JOBS, fields)
for _, key in ipairs(queues) do
  local queue = queues[key]
  each_piece('ZADD', key, queue.members)
  place(queue.job.slot, queue.job.kind, queue.job.tenant)
end
for _, at in ipairs(rest) do
  push(ids[at], records[at], jobs[at])
end
if added > 0 then
  ring_bell()
end
return added
