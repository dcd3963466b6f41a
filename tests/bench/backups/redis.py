"""Redis beside `redis-cli --rdb` followed by zstd."""

import subprocess

from .served import Served, Turns

# Strings, hashes, lists, sets and sorted sets, some with an expiry; a third of the bytes look like no others.
FILL = """
for at = tonumber(ARGV[1]), tonumber(ARGV[2]) - 1 do
  local noise, kind = redis.sha1hex(at .. ARGV[3]), at % 10
  if kind < 5 then
    redis.call('SET', 'session:' .. at, noise .. string.rep('{"user":' .. at .. ',"cart":[' .. noise:sub(1, 8) .. ']}', 10))
    if kind == 0 then redis.call('EXPIRE', 'session:' .. at, 864000 + at % 1000) end
  elseif kind < 8 then
    redis.call('HSET', 'user:' .. at, 'name', noise, 'mail', noise:sub(1, 12) .. '@example.org', 'logins', at, 'text', string.rep(noise:sub(1, 20) .. ' lorem ', 12))
  elseif kind == 8 then
    for n = 1, 10 do redis.call('RPUSH', 'queue:' .. at, noise .. n .. string.rep(' work', 5)) end
  else
    for n = 1, 10 do redis.call('ZADD', 'rank:' .. at, n * 1.5, noise:sub(1, 16) .. n) end
  end
end
"""
BYTES_A_KEY = 420
KEYS_A_CALL = 2000


def bench(programs, scratch, size_mb, rounds):
    with Served(programs, "redis") as server:
        port = server.address.split(":")[1]

        def fill(first, last, salt):
            for begin in range(first, last, KEYS_A_CALL):
                arguments = [str(begin), str(min(begin + KEYS_A_CALL, last)), salt]
                subprocess.run(["redis-cli", "-p", port, "EVAL", FILL, "0", *arguments], check=True, stdout=subprocess.DEVNULL)

        keys = size_mb * 2**20 // BYTES_A_KEY
        fill(0, keys, "first")
        turns = Turns(f"Redis 7, {keys:,} keys", server, programs / "fettler", scratch, rounds)
        peer = "redis-cli --rdb, zstd -1 -T2"
        turns.run(
            {peer: lambda folder: ["sh", "-c", f"redis-cli -p {port} --rdb {folder}/dump >/dev/null && zstd -q -1 -T2 --rm {folder}/dump"]},
            {"fettler restore": lambda work: turns.restore(work, "--overwrite")},
            [("fettler backup", peer, "")],
            lambda: fill(0, keys // 100, "second"),
        )
