-- Takes the next jobs for a worker and puts them in flight. ARGV: incarnation, ageing, visibility in milliseconds, room for
-- long and for short jobs, then the kinds that the worker announced. Answers with
-- {1, milliseconds until the next delivery comes back or -1, damaged entries, deliveries given back, {id, generation, …}},
-- or with {0, …} when the memory is not the one that the caller knows.
local BACKS = 100
if not is_known() then
  return { 0, -1, 0, 0, {} }
end
local visible = tonumber(ARGV[3]) * 1000
local damaged, back, popped = 0, 0, {}

-- What a popper that died has left in flight.
for _, id in ipairs(redis.call('ZRANGEBYSCORE', FLIGHT, '-inf', now, 'LIMIT', 0, BACKS)) do
  redis.call('ZREM', FLIGHT, id)
  local record = redis.call('HGET', AGAIN, id) or redis.call('HGET', JOBS, id)
  redis.call('HDEL', AGAIN, id)
  local job = parse(record)
  if job then
    enqueue(id, record, job)
    back = back + 1
  else
    redis.call('HDEL', JOBS, id)
    damaged = damaged + 1
  end
end

-- The tenant whose turn it is for a kind, where there is one.
local function candidate(slot, kind)
  for level = HIGHEST, 0, -1 do
    local ring = ring_key(slot, kind, level)
    for try = 1, CORRECTIONS do
      local first = redis.call('ZRANGE', ring, 0, 0, 'WITHSCORES')
      if not first[1] then
        break
      end
      local tenant, shown = first[1], tonumber(first[2])
      local turn = tonumber(redis.call('HGET', TURNS, slot .. ':' .. level .. ':' .. tenant) or shown)
      if turn > shown and try < CORRECTIONS then
        -- It was served by another of its kinds meanwhile.
        redis.call('ZADD', ring, turn, tenant)
      else
        local head = redis.call('ZRANGE', queue_key(slot, kind, tenant), 0, 0, 'WITHSCORES')
        if head[1] then
          return { kind = kind, tenant = tenant, level = level, turn = turn, rank = tonumber(head[2]) }
        end
        redis.call('ZREM', ring, tenant)
        redis.call('HDEL', base .. 'place:' .. slot .. ':' .. kind, tenant)
      end
    end
  end
  return nil
end

local function is_before(a, b)
  if a.level ~= b.level then
    return a.level > b.level
  end
  if a.turn ~= b.turn then
    return a.turn < b.turn
  end
  return a.rank < b.rank
end

-- Says that a tenant was served so many jobs from this turn on: its turn passes on by one over its weight for each.
local function pass_turn(slot, chosen, count)
  local kind, tenant = chosen.kind, chosen.tenant
  local field = slot .. ':' .. chosen.level
  local weight = tonumber(redis.call('HGET', WEIGHTS, tenant) or 1) or 1
  local step = 1 / math.max(weight, 0.001)
  local last = chosen.turn + (count - 1) * step
  local current = tonumber(redis.call('HGET', CURRENT, field) or 0)
  if last > current then
    redis.call('HSET', CURRENT, field, last)
  end
  local turn = chosen.turn + count * step
  redis.call('HSET', TURNS, field .. ':' .. tenant, turn)
  place(slot, kind, tenant)
  -- Only where it still stands in this ring.
  redis.call('ZADD', ring_key(slot, kind, chosen.level), 'XX', turn, tenant)
end

-- Whether a record is what a push has written for this queue.
local function belongs(job, slot, chosen)
  return job and job.slot == slot and job.kind == chosen.kind and job.tenant == chosen.tenant
end

-- Takes the first job of a tenant; the tenant's turn passes on.
local function serve(slot, chosen)
  local kind, tenant = chosen.kind, chosen.tenant
  local first = redis.call('ZPOPMIN', queue_key(slot, kind, tenant))
  local id = first[1]
  local job = parse(redis.call('HGET', JOBS, id))
  if not belongs(job, slot, chosen) then
    -- Nothing that a push has written: it would meet every worker again.
    redis.call('HDEL', JOBS, id)
    damaged = damaged + 1
    place(slot, kind, tenant)
    return
  end
  redis.call('ZADD', FLIGHT, now + visible, id)
  popped[#popped + 1] = id
  popped[#popped + 1] = string.format('%d', job.generation)
  pass_turn(slot, chosen, 1)
end

-- Takes the first jobs of a tenant that stands alone in its ring, as far as they are of its level: nobody else's turn comes in
-- between. Answers with how many; with none where they have to be looked at one by one.
local function serve_run(slot, chosen, room)
  local queue = queue_key(slot, chosen.kind, chosen.tenant)
  local heads = redis.call('ZRANGE', queue, 0, room - 1, 'WITHSCORES')
  local ids, flight = {}, {}
  for at = 1, #heads, 2 do
    if level_of(tonumber(heads[at + 1])) ~= chosen.level then
      break
    end
    ids[#ids + 1] = heads[at]
    flight[#flight + 1] = now + visible
    flight[#flight + 1] = heads[at]
  end
  local served = {}
  for at, record in ipairs(each_piece('HMGET', JOBS, ids)) do
    local job = parse(record)
    if not belongs(job, slot, chosen) then
      return 0
    end
    served[#served + 1] = ids[at]
    served[#served + 1] = string.format('%d', job.generation)
  end
  if #ids == 0 then
    return 0
  end
  redis.call('ZREMRANGEBYRANK', queue, 0, #ids - 1)
  each_piece('ZADD', FLIGHT, flight)
  for _, word in ipairs(served) do
    popped[#popped + 1] = word
  end
  pass_turn(slot, chosen, #ids)
  return #ids
end

for _, class in ipairs({ { 'l', tonumber(ARGV[4]) }, { 's', tonumber(ARGV[5]) } }) do
  local slot, room = class[1], class[2]
  local candidates = {}
  if room > 0 then
    for at = 6, #ARGV do
      local kind = ARGV[at]
      if redis.call('EXISTS', base .. 'place:' .. slot .. ':' .. kind) == 1 then
        local rises = base .. 'rise:' .. slot .. ':' .. kind
        for _, tenant in ipairs(redis.call('ZRANGEBYSCORE', rises, '-inf', now, 'LIMIT', 0, RISES)) do
          place(slot, kind, tenant)
        end
        candidates[#candidates + 1] = candidate(slot, kind)
      end
    end
  end
  -- Damaged entries count against the room, so that the loop ends.
  while room > 0 do
    local best
    for at, other in ipairs(candidates) do
      if not best or is_before(other, candidates[best]) then
        best = at
      end
    end
    if not best then
      break
    end
    local chosen = candidates[best]
    local run = 0
    if #candidates == 1 and redis.call('ZCARD', ring_key(slot, chosen.kind, chosen.level)) == 1 then
      run = serve_run(slot, chosen, room)
    end
    if run == 0 then
      serve(slot, chosen)
      run = 1
    end
    room = room - run
    -- The tenant's turn has passed on in all of its kinds.
    local left = {}
    for _, other in ipairs(candidates) do
      if other.tenant == chosen.tenant then
        left[#left + 1] = candidate(slot, other.kind)
      else
        left[#left + 1] = other
      end
    end
    candidates = left
  end
end

local next_back = -1
local first = redis.call('ZRANGE', FLIGHT, 0, 0, 'WITHSCORES')
if first[1] then
  next_back = math.max(0, math.ceil((tonumber(first[2]) - now) / 1000))
end
return { 1, next_back, damaged, back, popped }
