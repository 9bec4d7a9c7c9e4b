"""Lets time pass in a mounted root: a log grows, and data comes that nothing compresses.

usage: later.py ROOT SEED MB. The pseudo-random parts follow from SEED, so that two builds differ only where Debian does.
"""
import os, random, sys

root, seed, megabytes = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
draw = random.Random(seed)

with open(root + '/var/log/later.log', 'a') as log:
    for second in range(100_000):
        log.write('%02d:%02d:%02d guest worker[%d]: request %08x done in %d ms\n' % (
            second // 3600 % 24, second // 60 % 60, second % 60, draw.randrange(300, 32768),
            draw.randrange(1 << 32), draw.randrange(1, 900)))

os.makedirs(root + '/srv/later', exist_ok=True)
for number in range(megabytes):
    with open(root + '/srv/later/%02d.bin' % number, 'wb') as part:
        part.write(draw.randbytes(1_000_000))
