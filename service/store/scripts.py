"""What the Redis side does in one piece, so that no two pods can both believe that they have a call.

Per call two keys, of one slot of a cluster: the lease, a hash {gen, pod, top, opened, caller, closed}, and the log, a
hash of records by ``seq``. ``top`` is the highest ``seq`` that is there; a log that is gone, be it evicted, has none.
A call that was taken over by a pod which could not go on with it has no ``pod``. ``opened`` is when the call was
opened, which tells calls of one name apart; where one side does not know it, as in a lease that an earlier version
wrote, they may be one. Nothing is earlier or later by it, for clocks differ. ``caller`` is the index that the call is
in, empty where it is in none; a lease that does not say it may be of any caller.
"""

APPEND = """
local gen, pod, base, after = tonumber(ARGV[1]), ARGV[2], tonumber(ARGV[3]), tonumber(ARGV[4])
local ttl, whole, opened, caller = ARGV[5], ARGV[6], ARGV[7], ARGV[8]
local held = redis.call('HMGET', KEYS[1], 'gen', 'pod', 'top', 'closed', 'opened', 'caller')
local held_gen, top, known = tonumber(held[1] or '0'), tonumber(held[3] or '0'), held[5] or ''
local another = known ~= '' and opened ~= '' and known ~= opened
if held[4] and (after >= 0 or (known ~= '' and known == opened)) then
  return {'gone', held[4] == 'forgotten' and 1 or 0}
end
if another and not held[4] and (after >= 0 or held[2] ~= pod) then return {'exists', held_gen} end
if held[4] or another then
  redis.call('DEL', KEYS[1], KEYS[2])
  held_gen, top, known, held[6] = 0, 0, '', false
end
if held_gen > gen or (held_gen == gen and held[2] ~= pod) then return {'lost', held_gen} end
if held_gen < gen then
  for seq = base + 1, top do redis.call('HDEL', KEYS[2], seq) end
  top = math.min(top, base)
  redis.call('HSET', KEYS[1], 'gen', gen, 'pod', pod, 'top', top)
end
if known == '' and opened ~= '' then redis.call('HSET', KEYS[1], 'opened', opened) end
if held[6] ~= caller then redis.call('HSET', KEYS[1], 'caller', caller) end
if top > 0 and redis.call('EXISTS', KEYS[2]) == 0 then top = 0 end
if whole ~= '1' and top < after then
  redis.call('PEXPIRE', KEYS[1], ttl)
  return {'hole', top}
end
for at = 9, #ARGV, 2 do
  redis.call('HSET', KEYS[2], ARGV[at], ARGV[at + 1])
  top = math.max(top, tonumber(ARGV[at]))
end
redis.call('HSET', KEYS[1], 'top', top)
redis.call('PEXPIRE', KEYS[1], ttl)
redis.call('PEXPIRE', KEYS[2], ttl)
return {'ok', top}
"""
"""ARGV: gen, pod, base, after, ttl ms, whole, opened, caller, then seq and record in turn. after: what the writer knows
to be there; -1 for a new call, which may have the name of one that is over, or that its own pod, which has calls of its
own by their names, holds no more. whole: the record needs none before it. Those that are there stay, for a client that
has not received it goes on from them. Of a call that is gone the answer's number says whether it was forgotten.
"""

TAKE = """#!lua flags=allow-oom
local at_least, pod, last, ttl, opened = tonumber(ARGV[1]), ARGV[2], tonumber(ARGV[3]), ARGV[4], ARGV[5]
local held = redis.call('HMGET', KEYS[1], 'gen', 'top', 'closed', 'opened')
local known = held[4] or ''
if held[3] or (known ~= '' and opened ~= '' and known ~= opened) then return {'gone', 0, {}} end
local held_gen, top = tonumber(held[1] or '0'), tonumber(held[2] or '0')
if held_gen >= at_least then return {'superseded', held_gen, {}} end
local gen = at_least
if redis.call('EXISTS', KEYS[1], KEYS[2]) == 0 then return {'taken', gen, {}} end
for seq = last + 1, top do redis.call('HDEL', KEYS[2], seq) end
redis.call('HSET', KEYS[1], 'gen', gen, 'pod', pod, 'top', math.min(top, last))
if known == '' and opened ~= '' then redis.call('HSET', KEYS[1], 'opened', opened) end
redis.call('PEXPIRE', KEYS[1], ttl)
redis.call('PEXPIRE', KEYS[2], ttl)
return {'taken', gen, redis.call('HGETALL', KEYS[2])}
"""
"""ARGV: least gen, pod, last seq, ttl ms, opened. Also where the memory is full: what is there can be read, and a call
that was taken over has its lease already. Of a call of which there is nothing, nothing is written: whoever can go on
with it writes it whole.
"""

RELEASE = """#!lua flags=allow-oom
local held = redis.call('HMGET', KEYS[1], 'gen', 'pod')
if held[1] ~= ARGV[1] or held[2] ~= ARGV[2] then return 0 end
redis.call('HDEL', KEYS[1], 'pod')
return 1
"""
"""ARGV: gen, pod. That one took the call and cannot go on with it. The generations before it stay out."""

CLOSE = """#!lua flags=allow-oom
local held = redis.call('HMGET', KEYS[1], 'gen', 'pod', 'caller')
if ARGV[1] ~= '' and held[1] and (held[1] ~= ARGV[1] or held[2] ~= ARGV[2]) then return 0 end
if ARGV[5] and held[3] and held[3] ~= ARGV[5] then return 0 end
if ARGV[4] ~= 'over' then
  redis.call('DEL', KEYS[2])
  redis.call('HDEL', KEYS[1], 'caller')
end
redis.call('HSET', KEYS[1], 'closed', ARGV[4])
redis.call('PEXPIRE', KEYS[1], ARGV[3])
redis.call('PEXPIRE', KEYS[2], ARGV[3])
return 1
"""
"""ARGV: gen or '' for any, pod, ttl ms, 'over' or 'forgotten', and where it is to be a caller's, the caller. What was
forgotten leaves a mark that keeps it so, and tells nothing of the caller. Also where the memory is full, of which it
frees some.
"""
