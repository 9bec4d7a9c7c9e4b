/** Which guests and disks are estimated, why others are not, and how an estimate ends. */
import assert from 'node:assert/strict'
import { symlinkSync } from 'node:fs'
import { join } from 'node:path'
import { type TestContext, test } from 'node:test'
import { KIB, MIB } from '../../../lib/core/units.ts'
import { estimateDisk } from '../../../server/estimate/disk.ts'
import { Thinning } from '../../../server/estimate/spread.ts'
import { image } from '../analyze/rig.ts'
import { randomBytes } from '../chunk/samples.ts'
import { diskXml, type Hosts, hosts, UUID } from './rig.ts'

async function small(context: TestContext, more: Partial<Parameters<typeof hosts>[1]> = {}): Promise<Hosts> {
  const rig = await hosts(context, {
    disks: (folders) => diskXml('vda', join(folders.near, 'web.raw')),
    ...more,
  })
  await image(join(rig.near, 'web.raw'), 4 * MIB, [[MIB, randomBytes(MIB, 1)]])
  return rig
}

test('a guest by its name or uuid; one that does not run, or is called otherwise, is none', async (context) => {
  const rig = await small(context)
  assert.equal((await rig.estimate('web')).uuid, UUID)
  assert.equal((await rig.estimate(UUID)).guest, 'web')
  for (const guest of ['7', '', '../web', 'x'.repeat(300)])
    await assert.rejects(rig.estimate(guest), { code: 'SWAM_NOT_FOUND' })
})

test('disks that are not estimated say why, and count nowhere', async (context) => {
  const rig = await hosts(context, {
    disks: ({ near }) =>
      [
        diskXml('vda', join(near, 'web.raw')),
        diskXml('vdb', join(near, 'top.qcow2'), "<driver type='qcow2'/>"),
        diskXml('vdc', join(near, 'ro.raw'), "<driver type='raw'/><readonly/>"),
        diskXml('vdd', join(near, 'both.raw'), "<driver type='raw'/><shareable/>"),
        "<disk type='block' device='disk'><source dev='/dev/null'/><target dev='vde'/></disk>",
        "<disk type='network' device='disk'><target dev='vdf'/></disk>",
        diskXml('vdg', join(near, 'none.raw')),
        diskXml('vdh', '/etc/hostname'),
        diskXml('vdi', join(near, 'link.raw')),
        diskXml('vdj', join(near, 'web.raw'), "<encryption format='luks'/>"),
        `<disk type='file'><source file='${join(near, 'web.raw')}'><encryption format='luks'/></source><target dev='vdk'/></disk>`,
        diskXml('vdl', join(near, 'web.raw'), "<driver type='vmdk'/>"),
        diskXml('vdm', '/etc/hostname', "<driver type='qcow2'/>"),
        diskXml('vdn', join(near, 'both.qcow2'), "<driver type='qcow2'/>"),
        "<disk type='volume'><source pool='p' volume='v'/><target dev='vdo'/></disk>",
      ].join(''),
    others: ({ near }) => diskXml('vda', join(near, 'both.qcow2')),
  })
  for (const name of ['web.raw', 'top.qcow2', 'ro.raw', 'both.raw', 'both.qcow2'])
    await image(join(rig.near, name), 2 * MIB, [[0, randomBytes(MIB, 1)]])
  symlinkSync(join(rig.near, 'web.raw'), join(rig.near, 'link.raw'))
  const report = await rig.estimate()
  assert.deepEqual(
    report.disks.map(({ target, reason }) => [target, reason?.replaceAll(rig.near, 'DIR') ?? null]),
    [
      ['vda', null],
      ['vdb', 'DIR/top.qcow2: not readable as a qcow2: Image is not in qcow2 format'],
      ['vdc', 'read-only: libvirt does not copy it'],
      ['vdd', 'shareable: libvirt does not copy it'],
      ['vde', "no volume that a directory of root's below /dev names which is one of images (DIR)"],
      ['vdf', 'of type network: only files and block devices are looked at'],
      ['vdg', 'no file of 1 MiB or more directly in one of images (DIR)'],
      ['vdh', 'no file of 1 MiB or more directly in one of images (DIR)'],
      ['vdi', null],
      ['vdj', 'encrypted: what is in it cannot be told without its key'],
      ['vdk', 'encrypted: what is in it cannot be told without its key'],
      ['vdl', 'vmdk: only raw and qcow2 are read'],
      ['vdm', 'no file directly in one of images (DIR)'],
      ['vdn', 'a guest of this host has it as raw, so it is not read as a qcow2'],
      ['vdo', 'of type volume: only files and block devices are looked at'],
    ],
  )
  const [first, second] = report.disks
  assert.equal(report.dataBytes, 2 * MIB, 'a link to an image is one')
  assert.deepEqual([second?.dataBytes, second?.wireBytes, second?.mapAt], [0, 0, null])
  assert.ok(first!.wireBytes > MIB)
})

test('the time is that of the measured link, within limits.wanMbit', async (context) => {
  const rig = await small(context, { wanMbit: 1 })
  const report = await rig.estimate()
  assert.equal(report.linkMbit, 1)
  assert.ok(report.seconds >= (report.wireBytes * 8) / 1e6)
})

test('one estimate at a time; one that nobody waits for ends, and so does one whose time is over', async (context) => {
  const rig = await small(context)
  const gone = new AbortController()
  const first = rig.estimate('web', gone.signal)
  await assert.rejects(rig.estimate(), /another estimate/)
  gone.abort()
  await assert.rejects(first, /nobody waits for it/)
  await assert.rejects(rig.estimate('web', gone.signal), /nobody waits for it/)
  const late = await small(context, { estimateMs: 0 })
  await assert.rejects(late.estimate(), { code: 'SWAM_TIMEOUT' })
  assert.equal((await rig.estimate()).dataBytes, MIB, 'the next one may begin')
  for (let turn = 0; turn < 200 && rig.answers.busy; turn++)
    await new Promise((resolve) => setTimeout(resolve, 10))
  assert.equal(rig.answers.busy, false, 'the far side hears of the end')
})

const BEGUN = { scanning: 0, shares: true, blocks: true, held: [true] }

test('what a far side that lies answers is refused, and nothing stays busy', async (context) => {
  for (const [lying, answer, message] of [
    ['estimate', null, /expected an object/],
    ['estimate', { scanning: -1, shares: true, blocks: true, held: [] }, /scanning/],
    ['estimate', { scanning: 0, shares: true, blocks: true, held: 'x' }, /held/],
    ['estimate', { ...BEGUN, images: 'x' }, /images/],
    ['estimate', { ...BEGUN, images: ['raw'] }, /images: expected an object/],
    ['estimate', { ...BEGUN, images: [{ format: 'vmdk', bytes: 1 }] }, /expected raw or qcow2/],
    ['estimate', { ...BEGUN, images: [{ format: 'raw', bytes: -1 }] }, /bytes/],
    ['estimateChunks', { states: '' }, /states/],
    ['estimateChunks', { states: 7 }, /states/],
    ['estimateBlocks', { known: 'A'.repeat(1000) }, /known/],
    ['estimateBlocks', {}, /known/],
  ] as const) {
    const rig = await small(context)
    const { ask } = rig.peer
    Object.assign(rig.peer, {
      ask: async (method: string, params: object, timeoutMs: number): Promise<unknown> => {
        if (method === 'estimate' && lying !== 'estimate')
          return { ...((await ask(method, params, timeoutMs)) as object), blocks: true }
        const right = await ask(method, params, timeoutMs)
        return method === lying ? answer : right
      },
    })
    await assert.rejects(rig.estimate(), message, `${lying} ${JSON.stringify(answer)?.slice(0, 60)}`)
    Object.assign(rig.peer, { ask })
    assert.equal((await rig.estimate()).dataBytes, MIB)
  }
})

test('a far side that does not say as what it knows an image is taken at its word', async (context) => {
  const rig = await small(context)
  await image(join(rig.far, 'web.raw'), 4 * MIB, [[MIB, randomBytes(MIB, 1)]])
  const { ask } = rig.peer
  Object.assign(rig.peer, {
    ask: async (method: string, params: object, timeoutMs: number): Promise<unknown> => {
      const answer = (await ask(method, params, timeoutMs)) as Record<string, unknown>
      delete answer['images']
      return answer
    },
  })
  const { bySource, note } = (await rig.estimate()).disks[0]!
  assert.deepEqual([bySource.inPlace, note], [MIB, null])
})

test('of a disk that is too large for all of it to be asked about, a part tells', async (context) => {
  const rig = await small(context)
  const half = randomBytes(24 * MIB, 7)
  const parts = Array.from({ length: 24 }, (_, at) => half.subarray(at * MIB, (at + 1) * MIB))
  // Every other run of a MiB lies at the far side.
  const path = await image(
    join(rig.near, 'large.raw'),
    64 * MIB,
    parts.map((bytes, at) => [at * (MIB + 64 * KIB), bytes] as const),
  )
  await image(
    join(rig.far, 'a.raw'),
    64 * MIB,
    parts.flatMap((bytes, at) => (at % 2 === 0 ? [] : [[at * MIB * 2, bytes] as const])),
  )
  await rig.peer.ask('estimate', { targets: ['/x'] }, 10_000)
  const disk = await estimateDisk(
    { number: 0, image: { path, format: 'raw', directories: [rig.near] }, there: undefined },
    {
      ask: rig.peer.ask,
      catalog: rig.nearState,
      thinning: new Thinning(192),
      sample: { chunks: 64, bytes: 4 * MIB },
      blocksThere: true,
      signal: new AbortController().signal,
    },
  )
  assert.equal(disk.dataBytes, 24 * MIB)
  const asked = rig.calls.filter(({ method }) => method === 'estimateChunks').length
  assert.equal(asked, 1)
  assert.ok(disk.chunk > 6 * MIB && disk.chunk < 18 * MIB, `${disk.chunk}`)
  assert.equal(disk.chunk + disk.literal + disk.block, 24 * MIB)
  await rig.peer.ask('estimateEnd', {}, 10_000)
})

test('an image that goes away is a reason, and no crash', async (context) => {
  const rig = await small(context)
  await assert.rejects(
    estimateDisk(
      {
        number: 0,
        image: { path: join(rig.near, 'gone.raw'), format: 'raw', directories: [rig.near] },
        there: undefined,
      },
      {
        ask: rig.peer.ask,
        catalog: rig.nearState,
        thinning: new Thinning(1000),
        sample: { chunks: 64, bytes: 4 * MIB },
        blocksThere: false,
        signal: new AbortController().signal,
      },
    ),
    /gone\.raw/,
  )
})
