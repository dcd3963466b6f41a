-- Ends deliveries. ARGV: incarnation, ageing, milliseconds until those that wait come back, then id, generation and verdict
-- of each: 'c' the ledger has claimed it, 'r' the ledger has refused it, 'w' neither: it waits. From a claim or a refusal on
-- the ledger alone knows the job (rule 13), unless it said meanwhile that the job is claimable again.
if not is_known() then
  return -1
end
local ids = {}
for at = 4, #ARGV, 3 do
  ids[#ids + 1] = ARGV[at]
end
local records, flying = each_piece('HMGET', JOBS, ids), each_piece('ZMSCORE', FLIGHT, ids)
local agains = each_piece('HMGET', AGAIN, ids)
local ended, seen, back = {}, {}, {}
for nth, id in ipairs(ids) do
  local at = 1 + 3 * nth
  local generation, verdict = tonumber(ARGV[at + 1]), ARGV[at + 2]
  local old = parse(records[nth])
  if not old or old.generation > generation or seen[id] then
    -- Another delivery's, or forgotten, or named twice.
  elseif verdict == 'w' then
    if flying[nth] then
      redis.call('ZADD', FLIGHT, now + tonumber(ARGV[3]) * 1000, id)
    end
  else
    seen[id] = true
    ended[#ended + 1] = id
    if not flying[nth] then
      dequeue(id, old)
    end
    if agains[nth] then
      redis.call('HDEL', AGAIN, id)
      local job = parse(agains[nth])
      if job and (verdict == 'r' or job.generation > generation) then
        back[#back + 1] = { id, agains[nth], job }
      end
    end
  end
end
each_piece('ZREM', FLIGHT, ended)
each_piece('HDEL', JOBS, ended)
for _, one in ipairs(back) do
  enqueue(one[1], one[2], one[3])
end
if #back > 0 then
  ring_bell()
end
return #back
