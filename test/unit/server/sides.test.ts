/**
 * Peers that lie, against both sides of a daemon: each reaches its own migrations only, and a guest that two peers claim
 * is taken from neither. Bundles in memory; libvirt answers what the test says.
 */
import assert from 'node:assert/strict'
import { existsSync } from 'node:fs'
import { mkdir, mkdtemp, rm, symlink, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { type TestContext, test } from 'node:test'
import type { Config } from '../../../config/schema.ts'
import { ImageStock } from '../../../lib/catalog/stock.ts'
import { SlabPool } from '../../../lib/chunk/slab.ts'
import { type Clock, ManualClock } from '../../../lib/core/clock.ts'
import { LostError } from '../../../lib/core/errors.ts'
import {
  BEGUN_GUESTS_MAX,
  FAILED_MARK_MS,
  FAR_ASK_MS,
  LOCATED_MS,
  MIGRATIONS_MAX,
  PEER_CONTROL_BUNDLES_MAX,
  PEER_MIGRATIONS_MAX,
  STARTED_MARK_MS,
} from '../../../lib/core/limits.ts'
import { createLog } from '../../../lib/core/log.ts'
import { MIB } from '../../../lib/core/units.ts'
import type { Arrivals } from '../../../lib/engine/arrivals.ts'
import { Libvirt } from '../../../lib/host/libvirt.ts'
import type { Bundle } from '../../../lib/peer/bundle.ts'
import { bundlePair } from '../../../lib/peer/memory.ts'
import { Rpc } from '../../../lib/peer/rpc.ts'
import { History } from '../../../server/history.ts'
import { ImageList } from '../../../server/image-list.ts'
import { readMark, writeMark } from '../../../server/incoming-mark.ts'
import type { Peer } from '../../../server/peers.ts'
import { Site } from '../../../server/site.ts'
import { SourceSide } from '../../../server/source-side.ts'
import { TargetSide } from '../../../server/target-side.ts'
import { until } from '../../lab/run.ts'

const UUID = '33333333-3333-4333-8333-333333333333'
const uuid = (number: number): string => `33333333-3333-4333-8333-${String(number).padStart(12, '0')}`
const xml = (id: string): string => `<domain><name>vm</name><uuid>${id}</uuid><devices/></domain>`

async function start(context: TestContext, clock?: Clock) {
  const directory = await mkdtemp(join(tmpdir(), 'swam-sides-'))
  await mkdir(join(directory, 'incoming'))
  const config = {
    runDir: directory,
    stateDir: directory,
    images: [directory],
    migrationPorts: [49_152, 49_215],
    strict: false,
    ram: 'on',
    limits: { wanMbit: 0, windowMiB: 8, indexMiB: 1, scanMiBps: 0, flushDeadlineMs: 2000 },
    peers: ['ams1', 'fra1', 'sin1'].map((name, at) => ({ name, addresses: [`192.0.2.${at}`] })),
  } as unknown as Config
  const lines: string[] = []
  const log = createLog({ level: 'info', stream: { write: (line) => void lines.push(line) } })
  const site = new Site(config, log, new History(directory), clock)
  let described = 0
  Object.assign(site, {
    libvirt: new Libvirt({
      run: async (argv) => {
        if (argv.includes('domstate')) return 'running\n'
        described++
        return xml(argv.at(-1) ?? '')
      },
    }),
  })
  const ends: (() => unknown)[] = []
  context.after(async () => {
    for (const end of ends) await end()
    await site.history.settled()
    await rm(directory, { recursive: true, force: true })
  })
  return { site, config, directory, lines, ends, described: () => described }
}

function images(directory: string, { log, libvirt }: Site): ImageList {
  return new ImageList({ images: [directory], qcow2: [], formats: () => libvirt.imageFormats(), log })
}

type FarLives = 'yes' | 'no' | 'unknown'

async function source(context: TestContext, clock?: Clock, farLives: () => FarLives = () => 'unknown') {
  const place = await start(context, clock)
  const side = new SourceSide(place.site, {
    redirect: undefined,
    uids: [0],
    slabs: new SlabPool({ bytesMax: MIB }),
    describe: async () => [],
    farLives: async () => farLives(),
    estimates: { handlers: () => ({}) },
  })
  place.ends.push(() => Promise.all(side.migrations.map((migration) => migration.abort('over'))))
  /** A bundle that the peer dialed; what the far end of the pair is called is what swam-peer says. */
  const dialed = async (
    peer: string,
    kind: 'control' | 'disk' | 'ram',
    migrationId = '',
  ): Promise<Bundle> => {
    const { near, far, cut } = await bundlePair({ kind, migrationId, channels: 1 })
    place.ends.push(cut)
    Object.assign(far, { peer })
    side.takeBundle(far)
    return near
  }
  const peer = async (name: string): Promise<Rpc> => new Rpc(await dialed(name, 'control'))
  return { ...place, side, dialed, peer }
}

test('a peer stops, arms, classifies and attaches to its own migrations only', async (context) => {
  const { side, dialed, peer } = await source(context)
  const [ams, fra] = [await peer('ams1'), await peer('fra1')]
  const migrationId = uuid(1)
  await ams.call('announce', { migrationId, uuid: UUID, guest: 'vm' })
  await fra.call('stop', { migrationId, reason: 'because' })
  assert.equal(side.migrations.length, 1)
  await assert.rejects(fra.call('arm', { migrationId, ports: [49_152] }), /is not known here/)
  await assert.rejects(fra.call('classify', { migrationId, port: 49_152, exports: [] }), /is not known here/)
  for (const kind of ['disk', 'ram'] as const) {
    assert.match(
      (await (await dialed('fra1', kind, migrationId)).closed)?.message ?? '',
      /no announced migration/,
    )
  }
  const nobody = await dialed('elsewhere', 'control')
  assert.match((await nobody.closed)?.message ?? '', /is not a peer of this host/)
  await ams.call('stop', { migrationId, reason: 'over' })
  assert.equal(side.migrations.length, 0, 'its own peer stops it')
})

test("announcing a guest anew ends the same peer's migration of it, not another peer's", async (context) => {
  const { side, peer } = await source(context)
  const [ams, fra] = [await peer('ams1'), await peer('fra1')]
  await ams.call('announce', { migrationId: uuid(1), uuid: UUID, guest: 'vm' })
  await fra.call('announce', { migrationId: uuid(2), uuid: UUID, guest: 'vm' })
  assert.deepEqual(
    side.migrations.map(({ id }) => id),
    [uuid(1), uuid(2)],
  )
  await assert.rejects(fra.call('announce', { migrationId: uuid(1), uuid: UUID }), /is known already/)
  await ams.call('announce', { migrationId: uuid(3), uuid: UUID, guest: 'vm' })
  assert.deepEqual(
    side.migrations.map(({ id }) => id),
    [uuid(3)],
  )
})

test('a far daemon that dies before it opened the channels of what it announced: that goes direct', async (context) => {
  let lives: FarLives = 'unknown'
  const { side, dialed } = await source(context, undefined, () => lives)
  const control = await dialed('ams1', 'control')
  await new Rpc(control).call('announce', { migrationId: uuid(1), uuid: UUID, guest: 'vm' })
  const { record } = side.migrations[0]!
  await control.close(new LostError('killed'))
  await new Promise((resolve) => setTimeout(resolve, 2 * FAR_ASK_MS))
  assert.equal(record.reason, null, 'the link may be broken, and come back')
  lives = 'no'
  await until('it to go direct', 5000, () => (record.reason === null ? undefined : true))
  assert.equal(record.reason, 'the swamd of ams1 is gone')
  assert.equal(record.accelerated, false)
})

test('a channel that is lost before anything is caught: the migration goes direct', async (context) => {
  const { side, dialed, peer } = await source(context)
  const migrationId = uuid(1)
  await (await peer('ams1')).call('announce', { migrationId, uuid: UUID, guest: 'vm' })
  const { record } = side.migrations[0]!
  const disk = await dialed('ams1', 'disk', migrationId)
  await dialed('ams1', 'ram', migrationId)
  await disk.close(new LostError('killed'))
  await until('it to go direct', 5000, () => (record.reason === null ? undefined : true))
  assert.match(record.reason ?? '', /^the disk channel to ams1 was lost: .*killed/)
  assert.equal(record.accelerated, false)
})

test('a peer that announces without end leaves room for others', async (context) => {
  const { side, peer } = await source(context)
  const [ams, fra] = [await peer('ams1'), await peer('fra1')]
  const announce = (rpc: Rpc, number: number): Promise<unknown> =>
    rpc.call('announce', { migrationId: uuid(number), uuid: uuid(1000 + number), guest: 'vm' })
  for (let number = 0; number < PEER_MIGRATIONS_MAX; number++) await announce(fra, number)
  await assert.rejects(announce(fra, 100), /32 migrations of fra1 are under way/)
  await announce(ams, 200)
  assert.equal(side.migrations.length, PEER_MIGRATIONS_MAX + 1)
})

test('so many migrations leave a host at once, whoever announces them', async (context) => {
  const { side, peer } = await source(context)
  const peers = [await peer('ams1'), await peer('fra1'), await peer('sin1')]
  const announce = (number: number): Promise<unknown> =>
    peers[number % 3]!.call('announce', { migrationId: uuid(number), uuid: uuid(1000 + number) })
  for (let number = 0; number < MIGRATIONS_MAX; number++) await announce(number)
  await assert.rejects(announce(MIGRATIONS_MAX), /too many migrations are under way/)
  assert.equal(side.migrations.length, MIGRATIONS_MAX)
})

test('what is remembered of guests that peers asked for is bounded', async (context) => {
  const { peer, described } = await source(context, new ManualClock())
  const ams = await peer('ams1')
  await ams.call('locate', { uuid: UUID })
  for (let number = 1; number < BEGUN_GUESTS_MAX; number++) await ams.call('locate', { uuid: uuid(number) })
  await ams.call('announce', { migrationId: uuid(1), uuid: UUID })
  assert.equal(described(), BEGUN_GUESTS_MAX, 'it is remembered')
  await ams.call('locate', { uuid: uuid(BEGUN_GUESTS_MAX) })
  await ams.call('announce', { migrationId: uuid(2), uuid: UUID })
  assert.equal(described(), BEGUN_GUESTS_MAX + 2, 'it is asked again')
})

test('what a guest was when a peer asked for it is believed for a while only', async (context) => {
  const clock = new ManualClock()
  const { peer, described } = await source(context, clock)
  const ams = await peer('ams1')
  await ams.call('locate', { uuid: UUID })
  assert.equal(described(), 1)
  clock.advance(LOCATED_MS)
  await ams.call('announce', { migrationId: uuid(1), uuid: UUID, guest: 'vm' })
  assert.equal(described(), 1, 'it is not asked again')
  clock.advance(1)
  await ams.call('announce', { migrationId: uuid(2), uuid: UUID, guest: 'vm' })
  assert.equal(described(), 2)
})

for (const { name, ran, markMs } of [
  { name: 'hooks of libvirt still come', ran: false, markMs: FAILED_MARK_MS },
  { name: 'libvirt ends its QEMU, which ran here, later', ran: true, markMs: STARTED_MARK_MS },
]) {
  test(`a guest whose migration failed stays marked for a while: ${name}`, async (context) => {
    const clock = new ManualClock()
    const { site, directory, ends } = await start(context, clock)
    const peer = {
      config: { name: 'ams1' },
      dial: async (kind: 'disk' | 'ram', migrationId: string) => {
        if (!ran) return await new Promise(() => undefined)
        const { near, cut } = await bundlePair({ kind, migrationId })
        ends.push(cut)
        return near
      },
      call: async (method: string) => (method === 'locate' ? { found: true, name: 'vm', disks: [] } : {}),
    } as unknown as Peer
    const stock = new ImageStock({ indexBytesMax: MIB, blockIndexBytesMax: MIB, imagesMax: 1 })
    ends.push(() => stock.close())
    const side = new TargetSide(site, [peer], stock, images(directory, site))
    const mark = join(directory, 'incoming', 'vm')
    const event = { guest: 'vm', sub: 'begin', xml: xml(UUID) }
    await side.hook({ ...event, op: 'migrate' })
    const ports = [{ address: '127.0.0.1', port: 49_152 }]
    if (ran) assert.equal((await side.hook({ ...event, op: 'started', ports })).message, '')
    assert.ok(existsSync(mark))
    await Promise.all(side.migrations.map((migration) => migration.abort('over')))
    assert.equal(side.migrations.length, 0)
    clock.advance(markMs - 1)
    await new Promise((resolve) => setTimeout(resolve, 50))
    assert.ok(existsSync(mark))
    clock.advance(1)
    await until('the mark to go', 5000, async () => (existsSync(mark) ? undefined : true))
  })
}

test('so many migrations come to a host at once, also when all of them begin in one moment', async (context) => {
  const { site, directory, ends } = await start(context)
  const peer = {
    config: { name: 'ams1' },
    dial: () => new Promise(() => undefined),
    call: async (method: string) => (method === 'locate' ? { found: true, name: 'vm', disks: [] } : {}),
  } as unknown as Peer
  const stock = new ImageStock({ indexBytesMax: MIB, blockIndexBytesMax: MIB, imagesMax: 1 })
  ends.push(() => stock.close())
  const side = new TargetSide(site, [peer], stock, images(directory, site))
  const begin = (number: number): Promise<{ message: string }> => {
    const guest = `vm${number}`
    const text = xml(uuid(number)).replace('<name>vm<', `<name>${guest}<`)
    return side.hook({ guest, op: 'migrate', sub: 'begin', xml: text })
  }
  const answers = await Promise.all(Array.from({ length: MIGRATIONS_MAX + 2 }, (_, at) => begin(at)))
  assert.equal(side.migrations.length, MIGRATIONS_MAX)
  answers.push(await begin(1000))
  const refused = answers.filter(({ message }) => /too many migrations are under way/.test(message))
  assert.equal(refused.length, 3)
  await Promise.all(side.migrations.map((migration) => migration.abort('over')))
})

test('the mark of a guest says which of its files were missing and were not made by the hook', async (context) => {
  const { site, directory, ends } = await start(context)
  const peer = {
    config: { name: 'ams1' },
    dial: () => new Promise(() => undefined),
    call: async (method: string) => {
      if (method !== 'locate') return {}
      const disk = (target: string) => ({
        target,
        format: 'raw',
        alias: null,
        backed: target === 'vdb',
        capacity: MIB,
      })
      return { found: true, name: 'vm', disks: ['vda', 'vdb', 'vdc', 'vdd'].map(disk) }
    },
  } as unknown as Peer
  const stock = new ImageStock({ indexBytesMax: MIB, blockIndexBytesMax: MIB, imagesMax: 1 })
  ends.push(() => stock.close())
  const side = new TargetSide(site, [peer], stock, images(directory, site))
  const mark = join(directory, 'incoming', 'vm')
  await writeFile(join(directory, 'there.raw'), Buffer.alloc(MIB))
  const file = (target: string, name: string): string =>
    `<disk type='file'><driver type='raw'/><source file='${directory}/${name}'/><target dev='${target}'/></disk>`
  const block = `<disk type='block'><source dev='/dev/none'/><target dev='vdd'/></disk>`
  const disks = file('vda', 'made.raw') + file('vdb', 'backed.raw') + file('vdc', 'there.raw') + block
  const whole = xml(UUID).replace('<devices/>', `<devices>${disks}</devices>`)
  const answer = await side.hook({ guest: 'vm', op: 'migrate', sub: 'begin', xml: whole })
  assert.deepEqual(
    answer.create.map(({ path }) => path),
    [join(directory, 'made.raw')],
  )
  // The hook may be cut short before it reports.
  assert.deepEqual([...(await readMark(mark))], [join(directory, 'made.raw'), join(directory, 'backed.raw')])
  const made = [{ path: join(directory, 'made.raw'), created: true, error: null }]
  await side.hookReport({ guest: 'vm', uuid: UUID, images: made })
  assert.deepEqual([...(await readMark(mark))], [join(directory, 'backed.raw')])
  // Of a guest that is not coming no mark is made.
  await side.hookReport({ guest: 'other', uuid: UUID, images: made })
  assert.ok(!existsSync(join(directory, 'incoming', 'other')))
  await Promise.all(side.migrations.map((migration) => migration.abort('over')))
})

test('what a daemon that was killed has marked stays for a while: libvirt ends these guests then', async (context) => {
  const clock = new ManualClock()
  const { site, directory, ends } = await start(context, clock)
  const stock = new ImageStock({ indexBytesMax: MIB, blockIndexBytesMax: MIB, imagesMax: 1 })
  ends.push(() => stock.close())
  const side = new TargetSide(site, [], stock, images(directory, site))
  const mark = join(directory, 'incoming', 'vm')
  await writeMark(mark, 'id', ['/a'])
  await side.recover()
  clock.advance(STARTED_MARK_MS - 1)
  await new Promise((resolve) => setTimeout(resolve, 50))
  assert.deepEqual([...(await readMark(mark))], ['/a'])
  clock.advance(1)
  await until('the mark to go', 5000, async () => (existsSync(mark) ? undefined : true))
})

test('a peer has two control bundles at most: the oldest makes room', async (context) => {
  const { dialed } = await source(context)
  const bundles: Bundle[] = []
  for (let at = 0; at < PEER_CONTROL_BUNDLES_MAX + 2; at++) bundles.push(await dialed('fra1', 'control'))
  const other = await dialed('ams1', 'control')
  assert.match((await bundles[0]!.closed)?.message ?? '', /newer control bundles/)
  assert.match((await bundles[1]!.closed)?.message ?? '', /newer control bundles/)
  assert.deepEqual(
    [...bundles.slice(2), other].map(({ ended }) => ended),
    [false, false, false],
  )
})

test('a guest that two peers say they run is taken from neither', async (context) => {
  for (const liars of [0, 1]) {
    const { site, directory, lines, ends } = await start(context)
    const armed: string[] = []
    const peer = (name: string, found: boolean): Peer =>
      ({
        config: { name },
        dial: async (kind: 'disk' | 'ram', migrationId: string) => {
          const { near, cut } = await bundlePair({ kind, migrationId })
          ends.push(cut)
          return near
        },
        call: async (method: string) => {
          if (method === 'locate') return found ? { found, name: 'vm', disks: [] } : { found }
          if (method === 'arm') armed.push(name)
          return {}
        },
      }) as unknown as Peer
    const stock = new ImageStock({ indexBytesMax: MIB, blockIndexBytesMax: MIB, imagesMax: 1 })
    ends.push(() => stock.close())
    const side = new TargetSide(
      site,
      [peer('ams1', true), peer('fra1', liars > 0), peer('sin1', false)],
      stock,
      images(directory, site),
    )
    ends.push(() => Promise.all(side.migrations.map((migration) => migration.abort('over'))))
    const event = (op: string): object => ({ guest: 'vm', op, sub: 'begin', xml: xml(UUID) })
    assert.deepEqual(await side.hook(event('migrate')), { action: 'none', create: [], message: '' })
    const gone = AbortSignal.abort()
    const started = { ...event('started'), ports: [{ address: '127.0.0.1', port: 49_152 }] }
    const answer = await side.hook(started, gone)
    if (liars === 0) {
      assert.equal(answer.message, '')
      assert.match(side.migrations[0]!.record.note ?? '', /the hook waited in vain/)
      assert.deepEqual(armed, ['ams1'])
    } else {
      assert.match(answer.message, /ams1 and fra1 all say that they run this guest/)
      assert.deepEqual(armed, [], lines.join(''))
    }
  }
})

test('what is received is known to who asks, and images stay open while somebody else needs them', async (context) => {
  const { site, directory, ends } = await start(context)
  const stock = new ImageStock({ indexBytesMax: MIB, blockIndexBytesMax: MIB, imagesMax: 1 })
  ends.push(() => stock.close())
  const rested: boolean[] = []
  Object.assign(stock, { rest: async (unused: () => boolean) => void rested.push(unused()) })
  const peer = {
    config: { name: 'ams1' },
    dial: async (kind: 'disk' | 'ram', migrationId: string) => {
      const { near, cut } = await bundlePair({ kind, migrationId })
      ends.push(cut)
      return near
    },
    call: async (method: string) => (method === 'locate' ? { found: true, name: 'vm', disks: [] } : {}),
  } as unknown as Peer
  let needed = true
  const side = new TargetSide(site, [peer], stock, images(directory, site), () => needed)
  const source = join(directory, 'vm.raw')
  const disk = `<disk type='file'><source file='${source}'/><target dev='vda'/></disk>`
  const guest = xml(UUID).replace('<devices/>', `<devices>${disk}</devices>`)
  for (const expected of [false, true]) {
    await side.hook({ guest: 'vm', op: 'migrate', sub: 'begin', xml: guest })
    assert.deepEqual([...side.receiving], [source])
    await side.migrations[0]!.abort('over')
    await until('the migration to end', 10_000, async () => (side.migrations.length === 0 ? true : undefined))
    assert.deepEqual([...side.receiving], [])
    assert.equal(rested.at(-1), expected)
    needed = false
  }
})

test('what is received is for others only where all of the guest lies in `images`, also through links', async (context) => {
  const { site, directory, ends } = await start(context)
  const elsewhere = await mkdtemp(join(tmpdir(), 'swam-sides-elsewhere-'))
  ends.push(() => rm(elsewhere, { recursive: true, force: true }))
  await symlink(join(elsewhere, 'a.raw'), join(directory, 'link.raw'))
  await writeFile(join(elsewhere, 'a.raw'), '')
  const stock = new ImageStock({ indexBytesMax: MIB, blockIndexBytesMax: MIB, imagesMax: 1 })
  ends.push(() => stock.close())
  const peer = {
    config: { name: 'ams1' },
    dial: () => new Promise(() => undefined),
    call: async (method: string) => (method === 'locate' ? { found: true, name: 'vm', disks: [] } : {}),
  } as unknown as Peer
  const side = new TargetSide(site, [peer], stock, images(directory, site))
  const [vm, other, far] = [
    join(directory, 'vm.raw'),
    join(directory, 'other.raw'),
    join(elsewhere, 'vm.raw'),
  ]
  const arrivals: Arrivals[] = []
  for (const [at, paths] of [
    [vm],
    [vm, other],
    // What no guest writes is none that it receives.
    [vm, join(elsewhere, 'media.iso')],
    [far],
    [vm, far],
    [join(directory, 'link.raw')],
    [join(directory, 'none', 'vm.raw')],
  ].entries()) {
    const disk = (path: string, index: number): string => {
      const kind = path.endsWith('.iso') ? '<readonly/>' : ''
      return `<disk type='file'><source file='${path}'/><target dev='vd${'ab'[index]}'/>${kind}</disk>`
    }
    const whole = xml(uuid(at)).replace('vm', `vm${at}`)
    await side.hook({
      guest: `vm${at}`,
      op: 'migrate',
      sub: 'begin',
      xml: whole.replace('<devices/>', `<devices>${paths.map(disk).join('')}</devices>`),
    })
    arrivals.push(side.migrations.find(({ guest }) => guest === `vm${at}`)!.arrivals)
  }
  const shared = arrivals.map((one) => one === arrivals[0])
  assert.deepEqual(shared, [true, true, true, false, false, false, false])
  assert.equal(new Set(arrivals).size, 5)
  await Promise.all(side.migrations.map((migration) => migration.abort('over')))
})
