/**
 * Every finding of `swam doctor` is provoked on a real host of the lab, and is gone after its own mend was run: word for word,
 * but for what the lab lacks, systemd and a Debian archive. `systemctl` is done by hand here (the same signal to the same
 * process), and what apt would bring back is put back.
 */
import assert from 'node:assert/strict'
import { readFileSync } from 'node:fs'
import { test } from 'node:test'
import type { Finding } from '../../server/doctor/finding.ts'
import { SMALL, startBoth, status, swamLab } from '../e2e/swam-lab.ts'
import type { LabHost } from '../lab/host.ts'
import type { Lab } from '../lab/lab.ts'
import { until } from '../lab/run.ts'

const AUTHORIZED = '/var/lib/swam/.ssh/authorized_keys'
const HOOK = '/etc/libvirt/hooks/qemu.d/50-swam'
const SSHD = '/etc/ssh/sshd_config'
const ADDON = '/usr/lib/swam/node_modules/ssh2/lib/protocol/crypto/build/Release/sshcrypto.node'

async function doctor(host: LabHost, ...words: string[]): Promise<readonly Finding[]> {
  const { code, stdout, stderr } = await host.swam('doctor', '--json', ...words)
  const report = JSON.parse(stdout || '{}') as { version: number; ok: boolean; findings: Finding[] }
  assert.equal(report.version, 1, stderr)
  assert.equal(code, report.ok ? 0 : 1, stderr)
  return report.findings
}

/** What systemd would do with one of our units' names. */
async function systemctl(host: LabHost, words: string): Promise<void> {
  const done: Readonly<Record<string, () => Promise<unknown>>> = {
    'start swamd': () => host.startSwamd(),
    'restart swamd': async () => {
      await host.stopSwamd()
      await host.startSwamd()
    },
    'reload swamd': () => host.killSwamd('SIGHUP'),
    'daemon-reload': async () => undefined,
    'start ssh': () => host.shell('/usr/sbin/sshd -f /etc/ssh/sshd_config'),
    'reload ssh': () => reloadSshd(host),
    'kill --signal=HUP --kill-who=main libvirtd': () => host.shell('kill -HUP $(cat /run/swam-lab/libvirtd)'),
  }
  const run = done[words]
  assert.ok(run, `systemctl ${words}: not known to this test`)
  await run()
}

/** It starts itself anew, and a second HUP before it is there again would end it. */
async function reloadSshd(host: LabHost): Promise<void> {
  await host.shell(`/usr/sbin/sshd -t
kill -HUP $(cat /run/sshd.pid)
sleep 0.4
turns=0
until [ -s /run/sshd.pid ] || [ $turns -gt 50 ]; do sleep 0.1; turns=$((turns + 1)); done`)
}

async function mend(lab: Lab, host: LabHost, command: string): Promise<void> {
  for (const part of command.split(/ && (?=systemctl|touch)|(?<=libvirtd) && /)) {
    const [, far, words] = /^(?:(ssh root@10\.8\.0\.2) )?systemctl (.*)$/.exec(part) ?? []
    if (words !== undefined) await systemctl(far === undefined ? host : lab.host('hostb'), words)
    else await host.shell(part)
  }
}

interface Row {
  /** All are found at once, and mended in this order. */
  readonly ids: readonly string[]
  readonly provoke: string | (() => Promise<unknown>)
  /** In the place of a mend that the lab cannot run, or that leaves the rest to people. */
  readonly instead?: Readonly<Record<string, string | (() => Promise<unknown>)>>
  /** What was mended may take a while to show. */
  readonly settled?: () => Promise<unknown>
  /** Puts back what a mend does not: the next row begins with a host that is well. */
  readonly after?: () => Promise<unknown>
}

test('every finding is provoked, and gone after its mend', { timeout: 600_000 }, async (t) => {
  await using lab = await swamLab('doctor', { ipFamily: 'both', swamConfig: { redirect: 'nft' } })
  const hosta = lab.host('hosta')
  const hostb = lab.host('hostb')
  await startBoth(lab)
  const restart = async (): Promise<void> => {
    await systemctl(hosta, 'restart swamd')
    await startBoth(lab)
  }
  const up = (): Promise<unknown> =>
    until('the peer to be up', 90_000, async () =>
      (await status(lab, 'hosta'))?.peers[0]?.up === true ? true : undefined,
    )
  const down = (): Promise<unknown> =>
    until('the peer to be down', 30_000, async () =>
      (await status(lab, 'hosta'))?.peers[0]?.up === false ? true : undefined,
    )
  const provoked = new Set<string>()
  await hosta.shell(`cp ${SSHD} /run/sshd_config.kept`)
  const sshdAsBefore = async (): Promise<void> => {
    await hosta.shell(`cp /run/sshd_config.kept ${SSHD}`)
    await reloadSshd(hosta)
  }

  await t.test('a host that is well has no finding; without root it says who may', async () => {
    for (const host of lab.hosts()) assert.deepEqual(await doctor(host), [], host.name)
    const text = await hosta.swam('doctor')
    assert.match(text.stdout, /all is well: daemon, nft, hook/)
    const nobody = await hosta.exec(
      'setpriv',
      ['--reuid', 'nobody', '--clear-groups', '/usr/bin/swam', 'doctor'],
      {
        check: false,
      },
    )
    assert.equal(nobody.code, 4, nobody.stderr)
    assert.equal((await hosta.swam('doctor', '--peer', 'mars')).code, 5)
  })

  const rows: readonly Row[] = [
    {
      ids: [
        'login-shell',
        'login-locked',
        'login-modes',
        'key-mode',
        'hook-mode',
        'ports-differ',
        'qemu-user',
      ],
      provoke: `usermod --shell /usr/sbin/nologin swam
usermod --password '!' swam
chmod g+w /var/lib/swam
chmod 644 /etc/swam/id_ed25519
chmod 644 ${HOOK}
printf 'migration_port_max = 49300\\nuser = "nobody"\\n' >>/etc/libvirt/qemu.conf`,
      after: async () => {
        await hosta.shell(`sed -i '/^migration_port_max/d; /^user = "nobody"/d' /etc/libvirt/qemu.conf
sed -i '/^migrationPorts/d; /^qemuUser/d' /etc/swam/swam.toml`)
        await restart()
      },
    },
    {
      ids: ['authorized-options', 'authorized-open', 'authorized-stranger'],
      provoke: `line=$(cat ${AUTHORIZED})
sed -i 's/^restrict,//' ${AUTHORIZED}
echo "$line" | sed 's/^.*" ssh/ssh/; s/AAAAC3NzaC1lZDI1NTE5AAAAI/AAAAC3NzaC1lZDI1NTE5AAAAJ/' >>${AUTHORIZED}
echo "$line" | sed 's/--peer hostb/--peer mars/; s/AAAAC3NzaC1lZDI1NTE5AAAAI/AAAAC3NzaC1lZDI1NTE5AAAAK/' >>${AUTHORIZED}`,
    },
    { ids: ['authorized-unreadable'], provoke: `chown root:root ${AUTHORIZED}` },
    {
      ids: ['key-missing', 'authorized-missing'],
      provoke: `rm /etc/swam/id_ed25519; : >${AUTHORIZED}`,
      after: restart,
    },
    {
      ids: [
        'sshd-max-sessions',
        'sshd-pubkey',
        'sshd-force-command',
        'sshd-keys-file',
        'sshd-allow-users',
        'sshd-allow-groups',
        'sshd-deny-users',
        'sshd-deny-groups',
      ],
      provoke: `sed -i 's/^AuthorizedKeysFile.*/AuthorizedKeysFile .keys/' ${SSHD}
printf 'MaxSessions 2\\nPubkeyAuthentication no\\nForceCommand /bin/false\\nAllowUsers root x*\\nAllowGroups root\\nDenyUsers games swam\\nDenyGroups swa?\\n' >>${SSHD}`,
      // A pattern is what its owner must change.
      instead: { 'sshd-deny-groups': `sed -i '/^DenyGroups/d' ${SSHD}` },
      after: sshdAsBefore,
    },
    {
      ids: ['sshd-methods'],
      provoke: `sed -i 's/^PasswordAuthentication.*/PasswordAuthentication yes/' ${SSHD}; echo 'AuthenticationMethods publickey,password' >>${SSHD}`,
      after: sshdAsBefore,
    },
    { ids: ['sshd-down'], provoke: 'kill $(cat /run/sshd.pid); sleep 0.3' },
    {
      ids: ['sshd-unknown'],
      provoke: `echo nonsense >>${SSHD}`,
      instead: { 'sshd-unknown': `sed -i '/^nonsense/d' ${SSHD}` },
    },
    { ids: ['hook-missing'], provoke: `rm ${HOOK}` },
    { ids: ['hook-differs'], provoke: `echo >>${HOOK}` },
    { ids: ['hook-unseen'], provoke: `rm -f /run/swam-libvirtd-told; sleep 1.1; chmod 755 ${HOOK}` },
    {
      ids: ['name-unknown', 'name-there'],
      provoke: async () => {
        await hosta.shell(`sed -i '/hostb/d' /etc/hosts`)
        await hostb.shell(`sed -i '/hosta/d' /etc/hosts`)
      },
    },
    { ids: ['name-elsewhere'], provoke: `sed -i -e '1i 10.8.0.99 hostb' -e '/hostb/d' /etc/hosts` },
    {
      ids: ['ipv6-loopback'],
      provoke:
        'sysctl -qw net.ipv6.conf.lo.disable_ipv6=1; ip -6 addr del ::1/128 dev lo 2>/dev/null || true',
    },
    {
      ids: ['images-owner', 'images-missing', 'space-images', 'space-state'],
      provoke: `mkdir -p /srv/open /srv/small
mount -t tmpfs -o size=64M small /srv/small
chmod 777 /srv/open; mkdir /srv/small/state
cp /etc/swam/swam.toml /run/swam.toml.kept
sed -i 's|^images = .*|images = ["/srv/open", "/srv/none", "/srv/small"]|; s|^stateDir = .*|stateDir = "/srv/small/state"|' /etc/swam/swam.toml`,
      // The mend shows what takes the room; what goes is people's choice.
      instead: {
        'space-images': 'mount -o remount,size=3G /srv/small',
        'space-state': 'mount -o remount,size=3G /srv/small',
      },
      after: () => hosta.shell('umount /srv/small; cp /run/swam.toml.kept /etc/swam/swam.toml'),
    },
    {
      ids: ['images-away'],
      provoke: async () => {
        await hosta.shell(`mkdir -p /srv/store /srv/away
mount -t tmpfs -o size=64M store /srv/store
mount --bind /srv/store /srv/away
cp /etc/swam/swam.toml /run/swam.toml.kept
sed -i 's|^images = .*|images = ["/srv/away"]|' /etc/swam/swam.toml
head -c 2M /dev/urandom >/srv/away/a.img`)
        await restart()
        assert.equal((await hosta.swam('catalog', 'add', '/srv/away/a.img')).code, 0)
        await hosta.shell('umount /srv/away')
      },
      // It stands in no fstab here.
      instead: { 'images-away': 'mount --bind /srv/store /srv/away' },
      after: async () => {
        await hosta.shell('umount /srv/away /srv/store; cp /run/swam.toml.kept /etc/swam/swam.toml')
        await restart()
      },
    },
    {
      ids: ['images-outside', 'images-volume'],
      provoke: async () => {
        await hosta.shell(`mkdir -p /srv/vms /srv/open
chmod 777 /srv/open; echo image >/srv/open/two.img
cp /etc/swam/swam.toml /run/swam.toml.kept`)
        // The last one is in a directory of which others than root have the say: its mend moves the image.
        const disks = [
          ['file', 'file', '/srv/vms/one.img'],
          ['block', 'dev', '/dev/swamvg/one'],
          ['file', 'file', '/srv/open/two.img'],
        ].map(
          ([type, attribute, path], at) =>
            `<disk type="${type}" device="disk"><driver name="qemu" type="raw"/><source ${attribute}="${path}"/><target dev="vd${'abc'[at]}" bus="virtio"/></disk>`,
        )
        const xml = `<domain type="qemu"><name>outside</name><memory unit="MiB">16</memory><os><type>hvm</type></os><devices>${disks.join('')}</devices></domain>`
        await hosta.shell(`echo '${xml}' | virsh -q -c qemu:///system define /dev/stdin`)
      },
      after: async () => {
        await hosta.shell(`test -s /var/lib/libvirt/images/two.img
grep -q block-device-mapper /etc/systemd/system/swamd.service.d/volumes.conf
virsh -q -c qemu:///system undefine outside; cp /run/swam.toml.kept /etc/swam/swam.toml
rm -r /srv/open /srv/vms /var/lib/libvirt/images/two.img`)
        await restart()
      },
    },
    {
      ids: ['nft-missing', 'nft-table'],
      provoke: async () => {
        await hosta.shell('mv /usr/sbin/nft /usr/sbin/nft.away')
        await until('swamd to notice', 20_000, async () =>
          (await status(lab, 'hosta'))?.redirect.ok === false ? true : undefined,
        )
      },
      instead: { 'nft-missing': 'mv /usr/sbin/nft.away /usr/sbin/nft' },
      after: () => startBoth(lab),
    },
    {
      ids: ['crypto-slow'],
      provoke: `mount --bind /dev/null ${ADDON}`,
      instead: { 'crypto-slow': `umount ${ADDON}` },
    },
    { ids: ['daemon-down'], provoke: () => hosta.stopSwamd(), after: () => startBoth(lab) },
    {
      ids: ['daemon-redirect'],
      provoke: `sed -i 's/^redirect = .*/redirect = "off"/' /etc/swam/swam.toml`,
      after: async () => {
        await hosta.shell(`sed -i 's/^redirect = .*/redirect = "nft"/' /etc/swam/swam.toml`)
        await restart()
      },
    },
    {
      ids: ['daemon-release'],
      provoke: async () => {
        await hosta.stopSwamd()
        await hosta.shell(`mkdir -p /opt/swam-old
cd /usr/lib/swam
cp -r bin config hooks lib server package.json /opt/swam-old/
ln -sfn /usr/lib/swam/node_modules /opt/swam-old/node_modules
sed -i 's/"version": "[^"]*"/"version": "0.0.9"/' /opt/swam-old/package.json
ln -sf /opt/swam-old/bin/swamd /usr/sbin/swamd`)
        await startBoth(lab)
        await hosta.shell('ln -sf /usr/lib/swam/bin/swamd /usr/sbin/swamd')
      },
      after: () => startBoth(lab),
    },
    {
      ids: ['daemon-rights'],
      provoke: async () => {
        await hosta.stopSwamd()
        const caps =
          '--inh-caps=-all,+net_admin --ambient-caps=-all,+net_admin --bounding-set=-all,+net_admin'
        await hosta.shell(
          `setsid setpriv --reuid swam --regid swam --init-groups ${caps} /usr/sbin/swamd --config /etc/swam/swam.toml </dev/null >>/var/log/swam-lab/swamd.log 2>&1 & echo $! >/run/swam-lab/swamd.pid`,
        )
        await up()
      },
      after: () => startBoth(lab),
    },
    {
      ids: ['daemon-peers'],
      provoke: `cp /etc/swam/swam.toml /run/swam.toml.kept
sed -i 's/^name = "hostb"/name = "hostc"/' /etc/swam/swam.toml`,
      after: async () => {
        await hosta.shell('cp /run/swam.toml.kept /etc/swam/swam.toml')
        await restart()
      },
    },
    {
      ids: ['peer-down'],
      provoke: async () => {
        await hostb.stopSwamd()
        await down()
        await until('its reason', 20_000, async () =>
          (await status(lab, 'hosta'))?.peers[0]?.error?.includes('status 3') === true ? true : undefined,
        )
      },
      settled: up,
    },
    {
      ids: ['peer-version'],
      provoke: async () => {
        await hostb.stopSwamd()
        await hostb.shell(`mkdir -p /opt/swam-next
cd /usr/lib/swam
cp -r bin config hooks lib server package.json /opt/swam-next/
ln -sfn /usr/lib/swam/node_modules /opt/swam-next/node_modules
sed -i 's/^\\(export const PROTOCOL_VERSION: number = \\)[0-9]*/\\161234/' /opt/swam-next/lib/wire/hello.ts
ln -sf /opt/swam-next/bin/swamd /usr/sbin/swamd`)
        await hostb.startSwamd()
        await until('its reason', 60_000, async () =>
          (await status(lab, 'hosta'))?.peers[0]?.error?.includes('protocol version') === true
            ? true
            : undefined,
        )
      },
      instead: {
        'peer-version': async () => {
          await hostb.shell('ln -sf /usr/lib/swam/bin/swamd /usr/sbin/swamd')
          await hostb.stopSwamd()
          await hostb.startSwamd()
        },
      },
      settled: up,
    },
    {
      ids: ['peer-down'],
      provoke: async () => {
        // The key of this host in the place of the peer's: well formed, and not the one that sshd shows.
        await hosta.shell(`key=$(ssh-keygen -y -f /etc/ssh/lab_host_key | cut -d ' ' -f 1,2)
sed -i "s|^hostKey = .*|hostKey = \\"$key\\"|" /etc/swam/swam.toml`)
        await systemctl(hosta, 'restart swamd')
        await down()
        await until('its reason', 20_000, async () =>
          (await status(lab, 'hosta'))?.peers[0]?.error?.includes('host key') === true ? true : undefined,
        )
      },
      settled: up,
    },
    {
      ids: ['config-wrong'],
      provoke: `sed -i '1i naem = 7' /etc/swam/swam.toml`,
      after: () => hosta.shell(`sed -i '/^# naem/d' /etc/swam/swam.toml`),
    },
    {
      ids: ['config-missing'],
      provoke: `mkdir -p /usr/share/swam; cp /usr/lib/swam/config/swam.example.toml /usr/share/swam/swam.toml
mv /etc/swam/swam.toml /run/swam.toml.kept`,
      after: () => hosta.shell('mv /run/swam.toml.kept /etc/swam/swam.toml'),
    },
  ]

  const act = (what: string | (() => Promise<unknown>)): Promise<unknown> =>
    typeof what === 'string' ? hosta.shell(what) : what()
  for (const { ids, provoke, instead, settled, after } of rows) {
    await t.test(ids.join(', '), async () => {
      await act(provoke)
      const before = await doctor(hosta)
      const said = JSON.stringify(before, null, 1)
      for (const id of ids) {
        const found = before.filter((one) => one.id === id)
        assert.ok(found.length > 0, `${id} is not found: ${said}`)
        provoked.add(id)
        const replaced = instead?.[id]
        if (replaced !== undefined) await act(replaced)
        else for (const one of found) await mend(lab, hosta, one.mend)
      }
      await settled?.()
      const left = (await doctor(hosta)).filter(({ id }) => ids.includes(id))
      assert.deepEqual(left, [], 'gone after the mend')
      await after?.()
    })
  }

  await t.test('nft-unusable: in a container without the right', async () => {
    const caps = ['--bounding-set=-net_admin', '--inh-caps=-net_admin', '/usr/bin/swam', 'doctor', '--json']
    const { stdout } = await hosta.exec('setpriv', caps, { check: false })
    const { findings } = JSON.parse(stdout) as { findings: Finding[] }
    const found = findings.find(({ id }) => id === 'nft-unusable')
    assert.match(found?.what ?? stdout, /Operation not permitted/)
    provoked.add('nft-unusable')
    assert.deepEqual(await doctor(hosta), [], 'with the right it is well')
  })

  await t.test('bandwidth-cap', async () => {
    const guest = lab.tinyGuest({ ...SMALL, diskMiB: 16, randomMiB: 1 })
    await guest.create('hosta')
    await hosta.virsh('migrate-setspeed', guest.name, '10')
    const found = (await doctor(hosta)).filter(({ id }) => id === 'bandwidth-cap')
    assert.match(found[0]?.what ?? '', /capped at 10 MiB\/s/)
    provoked.add('bandwidth-cap')
    await mend(lab, hosta, found[0]!.mend)
    assert.deepEqual(
      (await doctor(hosta)).filter(({ id }) => id === 'bandwidth-cap'),
      [],
    )
    await hosta.virsh('destroy', guest.name)
  })

  await t.test('--peer asks the doctor there too', async () => {
    await hostb.shell('usermod --shell /usr/sbin/nologin swam')
    const { code, stdout, stderr } = await hosta.swam('doctor', '--peer', 'hostb', '--json')
    assert.equal(code, 1, stderr)
    const report = JSON.parse(stdout) as { findings: Finding[]; peer: { host: string; findings: Finding[] } }
    assert.deepEqual(
      report.peer.findings.map(({ id }) => id),
      ['login-shell'],
    )
    await hostb.shell(report.peer.findings[0]!.mend)
    const text = await hosta.swam('doctor', '--peer', 'root@hostb')
    assert.match(text.stdout, /root@hostb: all is well/)
  })

  await t.test('login-missing', async () => {
    await hosta.stopSwamd()
    // The peer may be logged in as that user.
    await hosta.shell('userdel -f swam')
    const found = (await doctor(hosta)).filter(({ id }) => id === 'login-missing')
    assert.equal(found.length, 1)
    provoked.add('login-missing')
    await mend(lab, hosta, found[0]!.mend)
    await startBoth(lab)
    assert.deepEqual(await doctor(hosta), [])
  })

  await t.test('no finding of the docs is left out', () => {
    const [, part] = readFileSync('docs/cli.md', 'utf8').split(/^## The doctor$/m)
    const listed = [...(part ?? '').split('\n## ')[0]!.matchAll(/`([a-z0-9]+(?:-[a-z0-9]+)+)`/g)].map(
      ([, id]) => id!,
    )
    assert.ok(listed.length > 40)
    // test/long/doctor-machines.test.ts has these.
    const elsewhere = ['apparmor-hook', 'sshd-penalties', 'peer-clock']
    // A check that cannot look; sshd stands for all.
    const own = [...provoked].filter((id) => id !== 'sshd-unknown')
    assert.deepEqual([...own, ...elsewhere].sort(), [...new Set(listed)].sort())
  })
  t.diagnostic(`provoked: ${[...provoked].sort().join(' ')}`)
})
