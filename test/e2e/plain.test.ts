/**
 * Plain migrations in the lab, without SWAM: they prove the lab itself, on which every other end-to-end test stands.
 * A guest that writes and syncs all the time goes there and back; its disks are compared while it is suspended, its
 * records are held to what it was told, the link's counters to what must have crossed. And a lab leaves nothing behind,
 * neither after `down` nor after a failed `up` nor when the process that held it is killed.
 */
import assert from 'node:assert/strict'
import { spawn } from 'node:child_process'
import { existsSync, readdirSync, readFileSync, readlinkSync, statSync } from 'node:fs'
import { test } from 'node:test'
import { Lab, labDown } from '../lab/lab.ts'
import { until } from '../lab/run.ts'
import { isAlive, labDir, readRecord } from '../lab/state.ts'
import type { WanStats } from '../lab/wan.ts'

const MIB = 1 << 20
const RANDOM_MIB = 64
const GUEST = { diskMiB: 256, randomMiB: RANDOM_MIB, ramMiB: 128 }
const PREFIX = `plain-${process.pid}`

/** What a lab could leave on the machine: processes that name its directory, mounts of it, the directory. */
function left(name: string): string[] {
  const dir = labDir(name)
  const found: string[] = []
  for (const pid of readdirSync('/proc').filter((entry) => /^\d+$/.test(entry))) {
    try {
      const words = readFileSync(`/proc/${pid}/cmdline`, 'utf8').replaceAll('\0', ' ')
      if (words.includes(dir)) found.push(`process ${pid}: ${words}`)
    } catch {
      // It ended while we looked.
    }
  }
  for (const line of readFileSync('/proc/mounts', 'utf8').split('\n')) {
    if (line.includes(dir) || line.startsWith('lab-host')) found.push(`mount: ${line}`)
  }
  if (existsSync(dir)) found.push(`directory ${dir}`)
  return found
}

/** Processes, by pid, that are in one of these network namespaces. */
function inNetworks(networks: ReadonlySet<string>): string[] {
  return readdirSync('/proc').filter((pid) => {
    if (!/^\d+$/.test(pid)) return false
    try {
      return networks.has(readlinkSync(`/proc/${pid}/ns/net`))
    } catch {
      return false // ended, or not ours to look at
    }
  })
}

/** Bytes of the disk's and of the RAM's connection: libvirt takes the first two ports of the range in this order. */
function portBytes(stats: WanStats, server: 'a' | 'b', port: number): number {
  const found = stats.connections.filter((each) => each.proto === 'tcp' && each[server].endsWith(`:${port}`))
  return found.reduce((sum, each) => sum + (server === 'b' ? each.bytesAB : each.bytesBA), 0)
}

test('plain migration there and back: disks equal, records there, bytes counted', {
  timeout: 240_000,
}, async () => {
  const name = `${PREFIX}-v4`
  const networks = new Set<string>()
  {
    await using lab = await Lab.up({ name, rttMs: 10, mbit: 1000 })
    for (const host of lab.hosts()) networks.add(readlinkSync(`/proc/${host.pid}/ns/net`))
    assert.ok(inNetworks(networks).length > 4)
    const guest = lab.tinyGuest(GUEST)
    await guest.create('hosta')
    await guest.waitBoot()
    await guest.waitProgress(3)

    const ways = [
      ['hosta', 'hostb', 'b'],
      ['hostb', 'hosta', 'a'],
    ] as const
    for (const [from, to, server] of ways) {
      await lab.wan.reset()
      const told = guest.durable()
      const done = await lab.migrate(guest, from, to, { args: ['--suspend'] })
      assert.ok(done.ok, done.stderr)
      assert.match(done.jobinfo['Total downtime'] ?? '', /^\d+ ms$/, JSON.stringify(done.jobinfo))

      // Suspended: both images stand still, as they were when the guest was paused.
      await lab.compareImages(guest.imagePath('hosta'), guest.imagePath('hostb'))
      const durable = guest.durable()
      assert.ok(durable > told, `no record became durable during the migration: ${told}, then ${durable}`)
      const check = await guest.check(guest.imagePath(to), durable)
      assert.ok(check.ok, check.faults.join('\n'))
      const beyond = await guest.check(guest.imagePath(to), durable + 100)
      assert.ok(!beyond.ok, 'the check must miss records that were never written')
      assert.ok(statSync(guest.imagePath(to)).blocks * 512 < (RANDOM_MIB + 64 + 8) * MIB, 'holes stay holes')

      const stats = await lab.wan.stats()
      const disk = portBytes(stats, server, 49153)
      const ram = portBytes(stats, server, 49152)
      assert.ok(disk > RANDOM_MIB * MIB && disk < 1.5 * (RANDOM_MIB + 64) * MIB, `disk bytes ${disk}`)
      assert.ok(ram > 10 * MIB && ram < 300 * MIB, `RAM bytes ${ram}`)
      const sum = stats.connections.reduce((total, each) => total + each.bytesAB + each.bytesBA, 0)
      assert.equal(sum, stats.total.bytesAB + stats.total.bytesBA, 'every byte belongs to a connection')

      await lab.host(to).virsh('resume', guest.name)
      await guest.waitProgress(3)
      const gap = await guest.longestGap(done.startedAt, lab.now())
      assert.ok(gap.ms > 5, `a migration without downtime: ${JSON.stringify(gap)}`)
      const beats = await guest.heartbeats()
      assert.equal(beats.at(-1)?.host, to)
    }
  }
  assert.deepEqual(left(name), [])
  assert.deepEqual(inNetworks(networks), [])
})

test('plain migration over IPv6 and ssh, scattered writes on a qcow2', { timeout: 240_000 }, async () => {
  const name = `${PREFIX}-v6`
  {
    await using lab = await Lab.up({ name, rttMs: 10, mbit: 1000, ipFamily: 6 })
    const guest = lab.tinyGuest({
      ...GUEST,
      randomMiB: 16,
      format: 'qcow2',
      write: { bytes: 4096, pattern: 'scattered', intervalMs: 100, batch: 4, areaOffset: 32 * MIB },
      dirty: { mib: 16, mibPerSecond: 4 },
    })
    await guest.create('hosta')
    await guest.waitBoot()
    await guest.waitProgress(1)
    await lab.wan.reset()
    const done = await lab.migrate(guest, 'hosta', 'hostb', { args: ['--suspend'], transport: 'ssh' })
    assert.ok(done.ok, done.stderr)
    await lab.compareImages(guest.imagePath('hosta'), guest.imagePath('hostb'), 'qcow2')
    const check = await guest.check(guest.imagePath('hostb'))
    assert.ok(check.ok, check.faults.join('\n'))
    const { connections } = await lab.wan.stats()
    const migration = connections.filter((each) => /:4915[23]$/.test(each.b))
    assert.equal(migration.length, 2, JSON.stringify(connections))
    for (const each of migration) assert.match(each.b, /^\[fd08::2\]/)
    assert.ok(connections.some((each) => each.b === '[fd08::2]:22'))
  }
  assert.deepEqual(left(name), [])
})

test('the link can be changed and cut while it is used', { timeout: 120_000 }, async () => {
  const name = `${PREFIX}-link`
  await using lab = await Lab.up({ name, rttMs: 10, mbit: 1000 })
  const uuid = async (): Promise<string> =>
    (
      await lab
        .host('hosta')
        .exec('virsh', ['-c', 'qemu+tcp://hostb/system', 'hostname'], { timeoutMs: 5_000 })
    ).stdout
  assert.match(await uuid(), /hostb/)
  await lab.wan.set({ rttMs: 400, mbit: 20 })
  const slow = lab.now()
  assert.match(await uuid(), /hostb/)
  assert.ok(lab.now() - slow >= 800, 'connect and one call are two round trips at least')
  await lab.wan.set({ cut: true })
  await assert.rejects(uuid)
  const { total } = await lab.wan.stats()
  assert.ok(total.droppedAB > 0)
  await lab.wan.set({ cut: false, rttMs: 1, mbit: 1000 })
  assert.match(await uuid(), /hostb/)
  await lab.wan.set({ loss: 0.1 })
  await until('packets to be lost', 30_000, async () => {
    await lab.host('hosta').exec('virsh', ['-c', 'qemu+tcp://hostb/system', 'capabilities'], { check: false })
    const { total } = await lab.wan.stats()
    return total.lostAB + total.lostBA > 0 ? true : undefined
  })
  await assert.rejects(lab.wan.set({ loss: 2 }), /out of range/)
})

test('an `up` that fails leaves nothing', { timeout: 120_000 }, async () => {
  const name = `${PREFIX}-bad`
  await assert.rejects(Lab.up({ name, loss: 7 }), /wanlink/)
  assert.deepEqual(left(name), [])
})

test('a killed holder: its hosts end by themselves, the next down removes the rest', {
  timeout: 120_000,
}, async () => {
  const name = `${PREFIX}-kill`
  const script = `const { Lab } = await import(${JSON.stringify(`${import.meta.dirname}/../lab/lab.ts`)})
const lab = await Lab.up({ name: ${JSON.stringify(name)} })
const guest = lab.tinyGuest(${JSON.stringify(GUEST)})
await guest.create('hosta')
console.log('up')
setInterval(() => {}, 1000)`
  const holder = spawn(process.execPath, ['--input-type=module', '-e', script], {
    stdio: ['ignore', 'pipe', 'inherit'],
  })
  try {
    let said = ''
    holder.stdout.on('data', (data: Buffer) => {
      said += data.toString()
    })
    await until('the holder to have its lab up', 60_000, () => (said.includes('up') ? true : undefined))
    await assert.rejects(Lab.up({ name }), /is held by process/)
    const record = readRecord(labDir(name))
    assert.ok(record)
    const all = [...Object.values(record.inits), ...record.processes]
    assert.ok(all.every(isAlive))
    holder.kill('SIGKILL')
    await until('the hosts to end after their holder', 10_000, () => (all.some(isAlive) ? undefined : true))
  } finally {
    holder.kill('SIGKILL')
    await labDown(name)
  }
  assert.deepEqual(left(name), [])
  await labDown(name) // idempotent
})
