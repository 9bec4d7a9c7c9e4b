/**
 * README's six commands and the commands of docs/operations.md, as the pages have them and in their order, on machines that
 * have nothing of SWAM: a Debian 12 and a Debian 13, once each way round. Only what the pages leave to their reader is done
 * here: a guest that is to move, the packages laid into root's folder, `y` to apt.
 */
import assert from 'node:assert/strict'
import { copyFileSync, readFileSync, rmSync } from 'node:fs'
import { after, before, type TestContext, test } from 'node:test'
import type { Finding } from '../../server/doctor/finding.ts'
import { type CommandBlock, commandBlocks } from '../lab/pages.ts'
import { run } from '../lab/run.ts'
import { build, entry, type Host, imageOf, isUp, Pair, runs, startGuest } from './package-machines.ts'

/** The version that the page upgrades to. */
const NEXT = '0.2.0'
const DISK_MIB = 64
const MIB = 1 << 20

before(() => build(undefined, NEXT))
after(() => rmSync(`out/swam_${NEXT}_amd64.deb`, { force: true }))

interface Typed {
  readonly command: string
  readonly said: string
}

/** As root types it in its own folder; apt's question is answered. */
async function type(host: Host, command: string, codes: readonly number[] = [0]): Promise<Typed> {
  const { code, stdout, stderr } = await host.machine.exec(['/bin/sh', '-c', `cd /root; ${command}`], {
    check: false,
    input: 'y\n',
    timeoutMs: 400_000,
  })
  const said = `${stdout}${stderr}`
  assert.ok(codes.includes(code ?? -1), `${host.name}# ${command}: ended with ${code}: ${said}`)
  return { command, said }
}

interface Sides {
  readonly here: Host
  readonly far: Host
}

function hostsOf({ here, far }: Sides, block: CommandBlock): readonly Host[] {
  return block.place === 'both' ? [here, far] : block.place === 'far' ? [far] : [here]
}

async function runBlock(t: TestContext, pair: Sides, block: CommandBlock): Promise<Typed[]> {
  const typed: Typed[] = []
  for (const host of hostsOf(pair, block)) {
    for (const command of block.commands) {
      t.diagnostic(`${host.name}# ${command}`)
      typed.push(await type(host, command))
    }
  }
  return typed
}

async function aMigrationOfVm(pair: Sides, digest: string, count: number): Promise<void> {
  const { here, far } = pair
  assert.deepEqual([await runs(here), await runs(far)], ['', 'vm'])
  assert.equal(await far.machine.shell(`sha256sum <${imageOf('vm')}`), digest)
  for (const host of [here, far]) {
    const one = await entry(host, count)
    assert.deepEqual([one.phase, one.accelerated, one.error], ['done', true, null], JSON.stringify(one))
    assert.ok((one.disks[0]?.bySource.literal ?? 0) >= (DISK_MIB - 1) * MIB, JSON.stringify(one))
  }
}

/** What the doctor finds is mended by the commands that it names, at the host that they are about. */
async function mended(t: TestContext, { here, far }: Sides, block: CommandBlock): Promise<void> {
  const command = block.commands[0]!
  const { said } = await type(here, `${command} --json`, [0, 1])
  const report = JSON.parse(said) as { findings: Finding[]; peer: { findings: Finding[] } }
  for (const [host, findings] of [
    [here, report.findings],
    [far, report.peer.findings],
  ] as const) {
    for (const { id, mend } of findings) {
      t.diagnostic(`${host.name}: ${id}: ${mend}`)
      assert.equal(id, 'sshd-penalties', `${host.name}: a host as the package makes it has nothing else`)
      await type(host, mend)
    }
  }
  await type(here, command)
}

test('README: six commands from two hosts to a migration', { timeout: 1_200_000 }, async (t) => {
  await using pair = await Pair.boot(['bookworm', 'here'], ['trixie', 'far'])
  const { a: here, b: far } = pair
  const first = here.machine
  const digest = await startGuest(first, 'vm', DISK_MIB)
  const blocks = commandBlocks(readFileSync('README.md', 'utf8')).filter(({ place }) => place !== undefined)
  assert.deepEqual(
    blocks.map(({ place, commands }) => [place, commands.length]),
    [
      ['builder', 1],
      ['here', 6],
    ],
  )
  await run('sh', ['-c', blocks[0]!.commands[0]!], { timeoutMs: 600_000 })
  copyFileSync('out/swam_0.1.0_amd64.deb', `${first.shared}/swam_0.1.0_amd64.deb`)
  await first.shell('cp /mnt/swam_0.1.0_amd64.deb /root')
  const typed = await runBlock(t, { here, far }, blocks[1]!)
  assert.match(typed.at(-1)!.said, /\bvm +to +far +done\b/)
  await aMigrationOfVm({ here, far }, digest, 1)
})

test('operations.md: from the first line to the last', { timeout: 1_200_000 }, async (t) => {
  await using machines = await Pair.boot(['trixie', 'here'], ['bookworm', 'far'])
  const { a: here, b: far } = machines
  const first = here.machine
  const pair: Sides = { here, far }
  for (const { machine } of [here, far]) {
    for (const version of ['0.1.0', NEXT])
      copyFileSync(`out/swam_${version}_amd64.deb`, `${machine.shared}/swam_${version}_amd64.deb`)
    await machine.shell('cp /mnt/swam_*.deb /root')
  }
  const digest = await startGuest(first, 'vm', DISK_MIB)
  let migrations = 0
  const checks: Readonly<Record<string, () => Promise<void>>> = {
    'Join two hosts': async () => {
      for (const { machine } of [here, far]) await isUp(machine, '0.1.0')
    },
    Migrate: async () => await aMigrationOfVm(pair, digest, ++migrations),
    Tuning: async () => {
      assert.equal(await here.machine.shell('grep ^wanMbit /etc/swam/swam.toml'), 'wanMbit = 200')
      await isUp(here.machine, '0.1.0')
    },
    Upgrade: async () => {
      await isUp(far.machine, NEXT)
      await isUp(here.machine, '0.1.0')
    },
    'Migrations that run': async () => {
      await isUp(here.machine, NEXT)
      assert.equal(await here.machine.shell('grep ^wanMbit /etc/swam/swam.toml'), 'wanMbit = 200')
    },
    Uninstall: async () => {
      for (const { machine } of [here, far]) {
        const left =
          'ls -d /etc/swam /var/lib/swam /run/swam /usr/lib/swam /etc/libvirt/hooks/qemu.d/* 2>/dev/null'
        assert.equal(
          await machine.shell(`nft list tables; getent passwd swam; ${left}; true`.replaceAll(';', ' ||:;')),
          '',
        )
      }
      assert.equal(await runs(far), 'vm')
    },
  }
  const blocks = commandBlocks(readFileSync('docs/operations.md', 'utf8'))
  for (const [index, block] of blocks.entries()) {
    if (block.place === undefined) continue
    await t.test(`${block.heading}, line ${block.line}`, async (one) => {
      if (block.note === '') await runBlock(one, pair, block)
      else if (block.note === 'its mends until it finds nothing') await mended(one, pair, block)
      else assert.fail(`line ${block.line}: nobody knows how to: ${block.note}`)
      if (blocks[index + 1]?.heading !== block.heading) await checks[block.heading]?.()
    })
  }
  for (const heading of Object.keys(checks))
    assert.ok(
      blocks.some((block) => block.heading === heading),
      `${heading}: no such part`,
    )
})
