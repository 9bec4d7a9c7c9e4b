/**
 * The package on whole machines with Debian 12 and 13 (systemd, libvirtd; test/lab/machine.ts) that have nothing of SWAM:
 * installed with apt, watched over by systemd, called by libvirt, upgraded, removed, purged. They have no network beyond
 * each other and no registry: what the package depends on is on them as on any libvirt host.
 */
import assert from 'node:assert/strict'
import { rmSync, writeFileSync } from 'node:fs'
import { after, before, test } from 'node:test'
import { WATCHDOG_STALL_MS } from '../../lib/core/limits.ts'
import { release as version } from '../../server/release.ts'
import { MACHINE_RELEASES, Machine } from '../lab/machine.ts'
import { until } from '../lab/run.ts'
import { apt, build, isUp, NEWER, share, unit } from './package-machines.ts'

/** Nothing boots from its disk, which is enough for events. */
const GUEST = `<domain type='qemu'><name>g1</name><uuid>a3b1c2d4-0000-4000-8000-000000000001</uuid><memory unit='MiB'>64</memory>
<os><type arch='x86_64'>hvm</type></os><devices><controller type='usb' model='none'/><memballoon model='none'/></devices></domain>`
const SANDBOXED = [
  'nft -j list table inet swam',
  'virsh -r -q -c qemu:///system domuuid g1',
  'virsh -r -q -c qemu:///system dumpxml g1',
  'tr "\\\\0" " " </proc/$(pgrep -o qemu-system)/cmdline | grep guest=g1',
  'grep -q local_address /proc/net/tcp',
  'ss -HtinO state listening',
  'qemu-img map --output=json --image-opts driver=raw,file.driver=file,file.locking=off,file.filename=/dev/fd/3 3</var/lib/libvirt/images/closed.raw',
  'getent passwd -- libvirt-qemu',
  'test ! -w /etc/swam && test ! -w /var/lib/libvirt/images && test -w /var/lib/swam && test -w /run/swam',
]

before(() => build(undefined, NEWER))
after(() => rmSync(`out/swam_${NEWER}_amd64.deb`, { force: true }))

/** Every path, but what every installation of any package changes, and what is no file. */
async function files(machine: Machine): Promise<string[]> {
  const left = ['/proc', '/sys', '/dev', '/mnt', '/run', '/tmp']
  const more = [
    '/var/lib/dpkg',
    '/var/lib/apt',
    '/var/cache',
    '/var/log',
    '/var/tmp',
    '/var/lib/libvirt/qemu',
    '/var/lib/systemd',
  ]
  const prune = [...left, ...more].map((path) => `-path ${path}`).join(' -o ')
  const text = await machine.shell(`find / \\( ${prune} \\) -prune -o -print | sort`)
  // Copies that the tools for users and ucf keep of their own files.
  return text
    .split('\n')
    .filter((path) => !/^\/etc\/(passwd|group|shadow|gshadow)-$|^\/var\/lib\/ucf\/.*\.\d$/.test(path))
}

async function restarted(machine: Machine, before: number, withinMs: number): Promise<number> {
  return await until(
    'systemd to start swamd again',
    withinMs,
    async () => {
      const shown = await unit(machine)
      const pid = Number(shown['MainPID'])
      return shown['SubState'] === 'running' && pid > 0 && pid !== before ? pid : undefined
    },
    200,
  )
}

async function startGuest(machine: Machine): Promise<void> {
  writeFileSync(`${machine.shared}/g1.xml`, GUEST)
  await machine.shell('virsh -q create /mnt/g1.xml')
}

for (const release of MACHINE_RELEASES) {
  test(`a life of the package: ${release}`, { timeout: 1_200_000 }, async (t) => {
    await using machine = await Machine.boot(release)
    share(machine, version(), NEWER)
    const fresh = await files(machine)
    assert.ok(fresh.length > 1000 && !fresh.some((path) => /swam/.test(path)))
    let pid = 0

    await t.test('without it libvirtd runs no new hook', async () => {
      await machine.shell(`mkdir -p /etc/libvirt/hooks/qemu.d
printf '#!/bin/sh\\necho "$1 $2 $3" >>/run/probe\\n' >/etc/libvirt/hooks/qemu.d/90-probe
chmod 755 /etc/libvirt/hooks/qemu.d/90-probe`)
      await startGuest(machine)
      await machine.shell('virsh -q destroy g1; test ! -e /run/probe')
    })

    await t.test('apt installs it: the unit is ready, user and folders are as they must be', async () => {
      const libvirtd = (await unit(machine, 'libvirtd'))['MainPID']
      assert.notEqual(libvirtd, '0')
      await apt(machine, `install /mnt/swam_${version()}.deb`)
      pid = await isUp(machine, version())
      assert.equal((await unit(machine, 'libvirtd'))['MainPID'], libvirtd)
      assert.equal(await machine.shell('getent passwd swam | cut -d : -f 6,7'), '/var/lib/swam:/bin/sh')
      assert.equal(await machine.shell('getent shadow swam | cut -d : -f 2'), '*')
      assert.equal(
        await machine.shell(
          'stat -c "%n %U:%G %a" /var/lib/swam /var/lib/swam/.ssh /etc/swam /etc/swam/swam.toml',
        ),
        '/var/lib/swam swam:swam 700\n/var/lib/swam/.ssh swam:swam 700\n/etc/swam root:root 755\n/etc/swam/swam.toml root:root 644',
      )
      assert.match(await machine.shell('swam config check'), /: ok$/)
      assert.equal(await machine.shell("sed -n 's/^site = //p' /etc/swam/swam.toml"), `"${release}"`)
      assert.match(
        await machine.shell('man -w swam swamd swam.toml 2>/dev/null || ls /usr/share/man/man*/swam*'),
        /swam\.toml\.5/,
      )
    })

    await t.test('libvirtd, told by HUP, runs the hook, and the hook reaches swamd', async () => {
      await machine.shell('runuser -u swam -- touch /run/swam/incoming/g1')
      await startGuest(machine)
      assert.match(await machine.shell('cat /run/probe'), /^g1 prepare begin$[\s\S]*^g1 started begin$/m)
      assert.equal(await machine.shell('ls /run/swam/incoming'), 'g1')
      await machine.shell('virsh -q destroy g1')
      // swamd, whom 50-swam tells of the end, takes the mark away.
      await until('the mark to go', 20_000, async () =>
        (await machine.shell('ls /run/swam/incoming')) === '' ? true : undefined,
      )
      await machine.shell('rm /etc/libvirt/hooks/qemu.d/90-probe /run/probe')
    })

    await t.test(
      'old salvage is removed by the timer’s service, in its sandbox, and by nobody else',
      async () => {
        assert.equal(await machine.shell('systemctl is-active swam-salvage.timer'), 'active')
        const folder = '/var/lib/libvirt/images/.swam-salvage'
        const name = '33333333-3333-4333-8333-333333333333-vda.raw'
        await machine.shell(`mkdir -m 700 ${folder}; truncate -s 2M ${folder}/${name} ${folder}/notes
cp /etc/swam/swam.toml /root/swam.toml; sed -i 's/^salvageGiB = .*/salvageGiB = 0/' /etc/swam/swam.toml
dd if=/dev/urandom of=${folder}/${name} bs=1M count=2 status=none`)
        await machine.shell('systemctl start swam-salvage.service')
        assert.equal(await machine.shell(`ls ${folder}`), 'notes')
        await machine.shell(`rm -r ${folder}; mv /root/swam.toml /etc/swam/swam.toml`)
      },
    )

    await t.test('in its sandbox: what swamd runs and reads works', async () => {
      await startGuest(machine)
      await machine.shell(`truncate -s 1M /var/lib/libvirt/images/closed.raw
chown libvirt-qemu:libvirt-qemu /var/lib/libvirt/images/closed.raw; chmod 600 /var/lib/libvirt/images/closed.raw`)
      const script = ['set -ex', 'id -un | grep swam', ...SANDBOXED, 'echo all of it']
      writeFileSync(`${machine.shared}/probe.sh`, `${script.join('\n')}\n`)
      // The same unit with another program; its directories are the daemon's and stay when it ends.
      await machine.shell(`unit=$(systemctl show -P FragmentPath swamd)
sed -e 's/^Type=.*/Type=oneshot/' -e 's/^Restart.*//' -e 's/^Watchdog.*//' -e 's/^RuntimeDirectory.*//' \
  -e 's|^ExecStart=.*|ExecStart=/bin/sh /mnt/probe.sh|' -e 's/^StateDirectory=.*/ReadWritePaths=\\/var\\/lib\\/swam \\/run\\/swam/' \
  $unit >/run/systemd/system/swam-probe.service
systemctl daemon-reload`)
      const done = await machine.exec(['systemctl', 'start', 'swam-probe'], { check: false })
      const log = await machine.shell('journalctl -u swam-probe --no-pager -o cat')
      assert.equal(done.code, 0, log)
      assert.match(log, /^all of it$/m)
      await machine.shell(
        'virsh -q destroy g1; rm /run/systemd/system/swam-probe.service /var/lib/libvirt/images/closed.raw; systemctl daemon-reload',
      )
      const exposure = await machine.shell('systemd-analyze security swamd --no-pager | tail -n 1')
      t.diagnostic(exposure)
      assert.ok(Number(/: ([\d.]+) /.exec(exposure)?.[1]) <= 2.5, exposure)
    })

    await t.test('systemd is fed by the companion', async () => {
      const first = Number((await unit(machine))['WatchdogTimestampMonotonic'])
      await until('a WATCHDOG=1', 15_000, async () =>
        Number((await unit(machine))['WatchdogTimestampMonotonic']) > first ? true : undefined,
      )
    })

    await t.test('a daemon that is stopped is killed by its companion, and starts again', async () => {
      await machine.shell(`kill -STOP ${pid}`)
      const next = await restarted(machine, pid, 2 * WATCHDOG_STALL_MS + 10_000)
      pid = await isUp(machine, version())
      assert.equal(pid, next)
      const log = await machine.shell('journalctl -u swamd --no-pager -o cat')
      assert.match(log, /its watchdog killed it/)
      assert.doesNotMatch(log, /Watchdog timeout/)
    })

    await t.test('one that is stopped together with its companion is killed by systemd', async () => {
      const from = performance.now()
      await machine.shell(`kill -STOP ${pid} $(pgrep -P ${pid} -f swamd-watchdog)`)
      const next = await restarted(machine, pid, 60_000)
      t.diagnostic(`after ${Math.round((performance.now() - from) / 1000)} s`)
      pid = await isUp(machine, version())
      assert.equal(pid, next)
      assert.match(await machine.shell('journalctl -u swamd --no-pager -o cat'), /Watchdog timeout/)
    })

    await t.test('a bad configuration ends it with 6, and it stays stopped', async () => {
      await machine.shell('cp -p /etc/swam/swam.toml /run/good; echo "naem = 1" >>/etc/swam/swam.toml')
      await machine.exec(['systemctl', 'restart', 'swamd'], { check: false })
      await new Promise((resolve) => setTimeout(resolve, 3000))
      const shown = await unit(machine)
      assert.deepEqual(
        [shown['ActiveState'], shown['ExecMainStatus'], shown['NRestarts']],
        ['failed', '6', '0'],
      )
      await machine.shell(
        'cp -p /run/good /etc/swam/swam.toml; rm /run/good; systemctl reset-failed swamd; systemctl start swamd',
      )
      pid = await isUp(machine, version())
    })

    await t.test('an upgrade keeps what was changed, and the state', async () => {
      await machine.shell(`sed -i 's/^site = .*/site = "ams"  # mine/; s/^wanMbit = .*/wanMbit = 7/' /etc/swam/swam.toml
echo 'restrict,command="swam-peer --peer fra1 --socket /run/swam/peer.sock" ssh-ed25519 AAAA swam' >/var/lib/swam/.ssh/authorized_keys
echo 'ssh-ed25519 BBBB administrator' >>/var/lib/swam/.ssh/authorized_keys
chown swam:swam /var/lib/swam/.ssh/authorized_keys; echo kept >/var/lib/swam/state-of-mine; rm /etc/libvirt/hooks/qemu.d/50-swam`)
      const state =
        'sha256sum /etc/swam/swam.toml /var/lib/swam/.ssh/authorized_keys /var/lib/swam/state-of-mine'
      const was = await machine.shell(state)
      await apt(machine, `install /mnt/swam_${NEWER}.deb`)
      pid = await isUp(machine, NEWER)
      assert.equal(await machine.shell(state), was)
      assert.match(await machine.shell('swam config check'), /: ok$/)
      await machine.shell('cmp /usr/lib/swam/hooks/50-swam /etc/libvirt/hooks/qemu.d/50-swam')
    })

    await t.test(
      'removal leaves no table, no hook, no key of a peer; configuration and history stay',
      async () => {
        // As a daemon leaves them that is killed; systemd waits to start it again, and of a unit that is stopped meanwhile
        // systemd 252 leaves the RuntimeDirectory.
        await machine.shell(`mkdir -p /run/systemd/system/swamd.service.d
printf '[Service]\\nRestartSec=600\\n' >/run/systemd/system/swamd.service.d/wait.conf; systemctl daemon-reload
kill -KILL ${pid}; nft add table inet swam_hold_1; nft add table inet swamp`)
        await until('systemd to wait', 10_000, async () =>
          (await unit(machine))['SubState'] === 'auto-restart' ? true : undefined,
        )
        await apt(machine, 'remove swam')
        await machine.shell('rm -r /run/systemd/system/swamd.service.d; systemctl daemon-reload')
        assert.equal(await machine.shell('nft list tables'), 'table inet swamp')
        await machine.shell('nft delete table inet swamp')
        assert.equal(await machine.shell('ls -A /etc/libvirt/hooks 2>/dev/null || true'), '')
        assert.equal(
          await machine.shell('cat /var/lib/swam/.ssh/authorized_keys'),
          'ssh-ed25519 BBBB administrator',
        )
        assert.equal(await machine.shell('pgrep -u swam || echo none'), 'none')
        await machine.shell(
          'test ! -e /run/swam; test -e /var/lib/swam/state-of-mine; grep -q "# mine" /etc/swam/swam.toml',
        )
        assert.equal((await unit(machine))['LoadState'], 'not-found')
        // A guest starts as ever.
        await startGuest(machine)
        await machine.shell('virsh -q destroy g1')
      },
    )

    await t.test('installed again it has its configuration; purged it leaves nothing', async () => {
      await apt(machine, `install /mnt/swam_${version()}.deb`)
      await isUp(machine, version())
      await machine.shell('grep -q "# mine" /etc/swam/swam.toml; ls /etc/libvirt/hooks/qemu.d/50-swam')
      await apt(machine, 'purge swam')
      const left = await files(machine)
      assert.deepEqual(
        left.filter((path) => !fresh.includes(path)),
        [],
      )
      assert.deepEqual(
        await machine.shell(
          'set +e; ls -d /run/swam 2>/dev/null; getent passwd swam; getent group swam; nft list tables; true',
        ),
        '',
      )
    })
  })
}
