-- Looks whether this memory is still the one that the fleet filled, and gives out the work of filling it (rule 15).
-- ARGV: an incarnation for a memory that has none, the replication id or '', who asks, the lease of the work in
-- milliseconds, 1 when the caller knows that jobs are missing. Answers with {incarnation, work, mark}: the work is 'refill',
-- 'sweep' or ''. The mark tells one request for a refill from the next.
local base = KEYS[1]
local incarnation = redis.call('GET', base .. 'incarnation')
local wanted = ARGV[5] == '1'
if not incarnation then
  incarnation = ARGV[1]
  redis.call('SET', base .. 'incarnation', incarnation)
  wanted = true
end
if ARGV[2] ~= '' then
  if redis.call('GET', base .. 'replication') ~= ARGV[2] then
    redis.call('SET', base .. 'replication', ARGV[2])
    wanted = true
  end
end
if wanted then
  redis.call('SET', base .. 'refill', ARGV[1])
end
local mark = redis.call('GET', base .. 'refill')
local work = ''
if mark then
  work = 'refill'
elseif redis.call('EXISTS', base .. 'swept') == 0 then
  work = 'sweep'
end
if work ~= '' and not redis.call('SET', base .. 'filler', ARGV[3], 'NX', 'PX', ARGV[4]) then
  -- Somebody is at it, or has died at it and is waited for until the lease ends.
  work = ''
end
return { incarnation, work, mark or '' }
