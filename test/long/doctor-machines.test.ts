/**
 * The doctor's findings that the lab cannot show, on whole machines with the package and each other as peers: OpenSSH of
 * Debian 13 shuts out addresses, AppArmor's tools are there, and one daemon's clock is ahead.
 */
import assert from 'node:assert/strict'
import { before, test } from 'node:test'
import type { Finding } from '../../server/doctor/finding.ts'
import { release as version } from '../../server/release.ts'
import { run, until } from '../lab/run.ts'
import { apt, build, type Host, Pair, peersUp } from './package-machines.ts'

before(() => build(undefined))

async function doctor({ machine }: Host): Promise<readonly Finding[]> {
  const { code, stdout, stderr } = await machine.exec(['swam', 'doctor', '--json'], { check: false })
  const { ok, findings } = JSON.parse(stdout || '{}') as { ok: boolean; findings: readonly Finding[] }
  assert.equal(code, ok ? 0 : 1, stderr)
  return findings
}

async function only(host: Host, id: string): Promise<Finding> {
  const findings = await doctor(host)
  assert.deepEqual(
    findings.map((one) => one.id),
    [id],
    JSON.stringify(findings),
  )
  return findings[0]!
}

test('findings of whole machines: provoked, and gone after their mend', { timeout: 900_000 }, async (t) => {
  await using pair = await Pair.boot(['trixie', 'new'], ['bookworm', 'old'], [version()])
  const { a, b } = pair
  const [first, second] = [a.machine, b.machine]
  for (const machine of [first, second]) await apt(machine, `install /mnt/swam_${version()}.deb`)
  await first.shell('swam peer add old root@old')
  await peersUp(a, b)

  await t.test('sshd-penalties: as Debian 13 has it; Debian 12 has no penalties', async () => {
    assert.deepEqual(await doctor(b), [])
    const { mend } = await only(a, 'sshd-penalties')
    await first.shell(mend)
    assert.deepEqual(await doctor(a), [])
    assert.match(await first.shell('sshd -T'), /^persourcepenaltyexemptlist 10\.9\.0\.2$/m)
  })

  for (const host of [a, b]) {
    await t.test(`apparmor-hook: ${host.name}`, async () => {
      // This kernel has no AppArmor: the list of loaded profiles is laid down, and the mend's last word only parses.
      await host.machine.shell(`mount -t tmpfs none /sys/kernel/security; mkdir /sys/kernel/security/apparmor
echo 'libvirtd (enforce)' >/sys/kernel/security/apparmor/profiles`)
      assert.deepEqual(await doctor(host), [], "Debian's own profile lets the hook run")
      await host.machine.shell(
        'sed -i "/hooks/d; s|^  /usr/bin/\\* PUx,||" /etc/apparmor.d/usr.sbin.libvirtd; apparmor_parser -QK /etc/apparmor.d/usr.sbin.libvirtd',
      )
      const { mend } = await only(host, 'apparmor-hook')
      assert.match(mend, / && apparmor_parser -r \/etc\/apparmor\.d\/usr\.sbin\.libvirtd$/)
      await host.machine.shell(mend.replace('apparmor_parser -r', 'apparmor_parser -QK'))
      assert.deepEqual(await doctor(host), [])
      await host.machine.shell('umount /sys/kernel/security')
    })
  }

  await t.test('peer-clock: the far daemon is five minutes ahead', async () => {
    const library = `${second.shared}/clock-ahead.so`
    await run('cc', ['-O2', '-Wall', '-Wextra', '-shared', '-fPIC', '-o', library, 'test/lab/clock-ahead.c'])
    await second.shell(`cp /mnt/clock-ahead.so /usr/lib/; mkdir -p /etc/systemd/system/swamd.service.d
printf '[Service]\\nEnvironment=LD_PRELOAD=/usr/lib/clock-ahead.so\\n' >/etc/systemd/system/swamd.service.d/clock.conf
systemctl daemon-reload; systemctl restart swamd`)
    await peersUp(a, b)
    const { what, mend } = await only(a, 'peer-clock')
    assert.match(what, /^the clock of old is (29\d|30\d) s ahead$/)
    assert.match(mend, /^timedatectl set-ntp true; ssh root@10\.9\.0\.2 timedatectl set-ntp true$/)
    // No NTP server is in reach here: what it would do to the clock is done by hand.
    await second.shell(
      'rm /etc/systemd/system/swamd.service.d/clock.conf; systemctl daemon-reload; systemctl restart swamd',
    )
    await peersUp(a, b)
    await until('the doctor to find nothing', 10_000, async () =>
      (await doctor(a)).length === 0 ? true : undefined,
    )
  })
})
