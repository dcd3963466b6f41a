-- What all scripts share: the names of the keys, and where a tenant stands in the order (rule 16).
--
-- The order has three steps. The jobs of one slot class, kind and tenant lie in a sorted set by rank, the ledger's own
-- number: the time from which the age counts, less one ageing interval for each priority level. Such a queue stands in the
-- ring of the level that its first job has by now; a ring holds tenants by their turn. A pop takes the first tenant of the
-- highest ring that is not empty, and moves it back by one turn over its weight.
--
-- All keys begin with KEYS[1], which holds the hash tag: they lie on one node of a cluster. Every loop has a bound, and lists
-- are unpacked in pieces.
local base = KEYS[1]
local HIGHEST = 4
-- How many tenants one call lets rise, and how many outdated turns it corrects, in one ring.
local RISES = 100
local CORRECTIONS = 50

local clock = redis.call('TIME')
-- Microseconds, exact in a double until the year 2255.
local now = tonumber(clock[1]) * 1000000 + tonumber(clock[2])
local ageing = tonumber(ARGV[2])
-- The ledger's clock may be a little ahead of this one: a new job still has its own level.
local tolerance = math.min(1000000, ageing / 10)

local JOBS, AGAIN, FLIGHT = base .. 'jobs', base .. 'again', base .. 'flight'
local TURNS, CURRENT, WEIGHTS = base .. 'turns', base .. 'current', base .. 'weights'

-- How many words of a list one command takes: what Lua unpacks lies on its stack. Even, so that no pair is cut.
local PIECE = 200

-- Gives the words of a list to a command after a key, in pieces; answers with what the command did in one list.
local function each_piece(command, key, words)
  local answers = {}
  for from = 1, #words, PIECE do
    local answer = redis.call(command, key, unpack(words, from, math.min(from + PIECE - 1, #words)))
    if type(answer) == 'table' then
      for _, one in ipairs(answer) do
        answers[#answers + 1] = one
      end
    end
  end
  return answers
end

-- Whether the caller knows this memory of Redis (rule 15).
local function is_known()
  return redis.call('GET', base .. 'incarnation') == ARGV[1]
end

local function queue_key(slot, kind, tenant)
  return base .. 'queue:' .. slot .. ':' .. kind .. ':' .. tenant
end

local function ring_key(slot, kind, level)
  return base .. 'ring:' .. slot .. ':' .. kind .. ':' .. level
end

-- A job's record: generation, slot class, kind, tenant, rank, version of the kind. Nil for what is none.
local function parse(record)
  if type(record) ~= 'string' then
    return nil
  end
  local generation, slot, kind, tenant, rank, version =
    string.match(record, '^(%d+) ([ls]) ([%w%-_.~=]+) ([%w%-_.]+) (%-?%d+) (%d+)$')
  if not generation then
    return nil
  end
  return {
    generation = tonumber(generation), slot = slot, kind = kind, tenant = tenant, rank = rank, version = version,
  }
end

-- The level at which a job of this rank is served by now.
local function level_of(rank)
  return math.max(0, math.min(HIGHEST, math.floor((now + tolerance - rank) / ageing)))
end

-- Puts a tenant's queue where its first job belongs now. A tenant that comes to a level starts at the turn that is served
-- there: without credit for the time in which it had nothing, and with what it owes.
local function place(slot, kind, tenant)
  local places = base .. 'place:' .. slot .. ':' .. kind
  local rises = base .. 'rise:' .. slot .. ':' .. kind
  local head = redis.call('ZRANGE', queue_key(slot, kind, tenant), 0, 0, 'WITHSCORES')
  local old = redis.call('HGET', places, tenant)
  if not head[1] then
    if old then
      redis.call('ZREM', ring_key(slot, kind, old), tenant)
      redis.call('ZREM', rises, tenant)
      redis.call('HDEL', places, tenant)
    end
    return
  end
  local rank = tonumber(head[2])
  local level = level_of(rank)
  local name = string.format('%d', level)
  if old ~= name then
    if old then
      redis.call('ZREM', ring_key(slot, kind, old), tenant)
    end
    local field = slot .. ':' .. name
    local turn = tonumber(redis.call('HGET', TURNS, field .. ':' .. tenant) or 0)
    local served = tonumber(redis.call('HGET', CURRENT, field) or 0)
    if turn < served then
      turn = served
      redis.call('HSET', TURNS, field .. ':' .. tenant, turn)
    end
    redis.call('ZADD', ring_key(slot, kind, name), turn, tenant)
    redis.call('HSET', places, tenant, name)
  end
  if level < HIGHEST then
    redis.call('ZADD', rises, rank + (level + 1) * ageing - tolerance, tenant)
  else
    redis.call('ZREM', rises, tenant)
  end
end

-- Puts a job into its queue.
local function enqueue(id, record, job)
  redis.call('HSET', JOBS, id, record)
  redis.call('ZADD', queue_key(job.slot, job.kind, job.tenant), job.rank, id)
  place(job.slot, job.kind, job.tenant)
end

-- Takes a job out of its queue.
local function dequeue(id, job)
  if redis.call('ZREM', queue_key(job.slot, job.kind, job.tenant), id) > 0 then
    place(job.slot, job.kind, job.tenant)
  end
end

-- Tells the workers that there is something to take.
local function ring_bell()
  redis.call('PUBLISH', base .. 'bell', '1')
end
