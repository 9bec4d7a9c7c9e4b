"""Gives a mounted guest the traces of a life: logs, a git repository, and data that nothing compresses.

usage: life.py ROOT. The pseudo-random parts have fixed seeds, so that two builds differ only where Debian does.
"""
import os, random, subprocess, sys

root = sys.argv[1]
draw = random.Random(20250520)

with open(root + '/var/log/nginx/access.log', 'w') as log:
    for second in range(120_000):
        log.write('%d.%d.%d.%d - - [%02d/May/2025:%02d:%02d:%02d +0000] "GET /item/%d HTTP/1.1" 200 %d "-" "Mozilla/5.0"\n' % (
            draw.randrange(1, 224), draw.randrange(256), draw.randrange(256), draw.randrange(1, 255),
            1 + second // 86400, second // 3600 % 24, second // 60 % 60, second % 60,
            draw.randrange(100_000), draw.randrange(200, 90_000)))

os.makedirs(root + '/srv/data', exist_ok=True)
for number in range(24):
    with open(root + '/srv/data/%02d.bin' % number, 'wb') as part:
        part.write(draw.randbytes(1 << 20))

subprocess.run(['chroot', root, 'sh', '-ec', '''
    git config --global gc.auto 0 # its gc goes on in the background and would hold the mount
    git init -q /srv/repository
    cd /srv/repository
    cp -r /usr/share/perl5 /usr/share/perl .
    git -c user.name=guest -c user.email=guest@localhost add .
    git -c user.name=guest -c user.email=guest@localhost commit -qm "everything"
'''], check=True)
