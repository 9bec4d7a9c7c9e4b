/**
 * An estimate of images made by hand, of which each byte's source is known, held against what `swam analyze` says of the same
 * images, which sends every byte.
 */
import assert from 'node:assert/strict'
import { renameSync, utimesSync } from 'node:fs'
import { join } from 'node:path'
import { type TestContext, test } from 'node:test'
import { MapFolder } from '../../../lib/catalog/map-folder.ts'
import { KIB, MIB } from '../../../lib/core/units.ts'
import type { DiskEstimate, EstimateReport } from '../../../server/estimate/estimate.ts'
import { image } from '../analyze/rig.ts'
import { programBytes, randomBytes, treeBytes } from '../chunk/samples.ts'
import { asAnalyzed, near } from './analyzed.ts'
import { diskXml, GUEST_MEMORY_KIB, type Hosts, hosts, UUID } from './rig.ts'

const SIZE = 96 * MIB
const BLOCK = 4 * KIB

/** Whole blocks in another order, as if files had been written anew. */
function otherLayout(bytes: Buffer): Buffer {
  const files: Buffer[] = []
  for (let at = 0; at < bytes.length; at += 7 * BLOCK) files.unshift(bytes.subarray(at, at + 7 * BLOCK))
  return Buffer.concat(files)
}

function changed(bytes: Buffer, every: number): Buffer {
  const other = Buffer.from(bytes)
  for (let at = 0; at < other.length; at += every) randomBytes(BLOCK, at + 9).copy(other, at)
  return other
}

async function oneDisk(context: TestContext): Promise<Hosts> {
  return await hosts(context, { disks: (folders) => diskXml('vda', join(folders.near, 'web.raw')) })
}

async function compared(
  context: TestContext,
  rig: Hosts,
  report: EstimateReport,
  far: { readonly have: readonly string[]; readonly inPlace?: string },
): Promise<DiskEstimate> {
  return await asAnalyzed(context, report, { target: join(rig.near, 'web.raw'), ...far })
}

test('nothing at the far side: all that is not zero is sent, compressed, and what is there twice once', async (context) => {
  const rig = await oneDisk(context)
  const twice = programBytes(4 * MIB, 56 * MIB)
  await image(join(rig.near, 'web.raw'), SIZE, [
    [MIB, treeBytes(24 * MIB)],
    [40 * MIB, programBytes(16 * MIB, 8 * MIB)],
    [60 * MIB, twice],
    [70 * MIB, randomBytes(8 * MIB, 3)],
    [84 * MIB, twice],
  ])
  const report = await rig.estimate()
  const { session } = (await compared(context, rig, report, { have: [] })).bySource
  near(session, 4 * MIB, 'session', MIB)
  assert.deepEqual(
    { ...report, disks: [], dataBytes: 0, wireBytes: 0, linkMbit: 0, rttMs: 0, seconds: 0 },
    {
      version: 1,
      guest: 'web',
      uuid: UUID,
      peer: 'fra1',
      disks: [],
      dataBytes: 0,
      wireBytes: 0,
      linkMbit: 0,
      rttMs: 0,
      seconds: 0,
      imagesScanning: 0,
      peerSilent: false,
      ramBytes: GUEST_MEMORY_KIB * KIB,
    },
  )
  const onLink = (report.wireBytes * 8) / (report.linkMbit * 1e6)
  assert.ok(report.seconds >= onLink && report.seconds <= onLink * 1.01 + 1, `${report.seconds}, ${onLink}`)
})

test('in place, moved, only its blocks, and new', async (context) => {
  const rig = await oneDisk(context)
  const [old, moved, laid, fresh, unknown] = [
    programBytes(24 * MIB, 0),
    programBytes(16 * MIB, 26 * MIB),
    programBytes(8 * MIB, 44 * MIB),
    treeBytes(10 * MIB),
    randomBytes(6 * MIB, 77),
  ]
  await image(join(rig.near, 'web.raw'), SIZE, [
    [MIB, old],
    [30 * MIB, moved],
    [48 * MIB, laid],
    [60 * MIB, fresh],
    [74 * MIB, unknown],
  ])
  const inPlace = await image(join(rig.far, 'web.raw'), SIZE, [
    [MIB, old],
    // What a migration writes over is a source, also where it lies elsewhere.
    [60 * MIB + 512 * KIB, fresh],
  ])
  const have = [
    await image(join(rig.far, 'a.raw'), 32 * MIB, [[5 * MIB, moved]]),
    await image(join(rig.far, 'b.raw'), 32 * MIB, [[2 * MIB, otherLayout(laid)]]),
  ]
  const disk = await compared(context, rig, await rig.estimate(), { have, inPlace })
  const { inPlace: lies, chunk, block } = disk.bySource
  near(lies, 24 * MIB, 'in place', MIB)
  near(chunk, 26 * MIB, 'chunk', 2 * MIB)
  // The engine's own figure is that, too: a chunk with a seam between two files has blocks that lie nowhere.
  near(block, 8 * MIB, 'block', 2 * MIB)
})

test('a return trip: next to nothing but what changed', async (context) => {
  const rig = await oneDisk(context)
  const bytes = programBytes(64 * MIB, 0)
  await image(join(rig.near, 'web.raw'), SIZE, [[MIB, changed(bytes, 4 * MIB)]])
  const inPlace = await image(join(rig.far, 'web.raw'), SIZE, [[MIB, bytes]])
  const disk = await compared(context, rig, await rig.estimate(), { have: [], inPlace })
  assert.ok(disk.bySource.inPlace > 60 * MIB)
})

test('the map that lies here is used, also an old one; one of another file is not', async (context) => {
  const rig = await oneDisk(context)
  const path = await image(join(rig.near, 'web.raw'), SIZE, [[MIB, randomBytes(8 * MIB, 5)]])
  const scanned = (await rig.estimate()).disks[0]!
  assert.equal(scanned.mapAt, null)
  const before = Date.now()
  await new MapFolder({ stateDir: rig.nearState, images: [rig.near] }).make(path)
  const mapped = (await rig.estimate()).disks[0]!
  assert.ok(mapped.mapAt !== null && mapped.mapAt >= before - 1000 && mapped.mapAt <= Date.now() + 1000)
  assert.deepEqual({ ...mapped, mapAt: null }, scanned)
  // A guest that runs writes.
  await image(path, SIZE, [[80 * MIB, randomBytes(MIB, 6)]])
  utimesSync(path, 7, 7)
  const old = (await rig.estimate()).disks[0]!
  assert.equal(old.dataBytes, 8 * MIB, 'as it was')
  assert.equal(old.mapAt, mapped.mapAt)
  // Another file in its place.
  renameSync(await image(`${path}.new`, SIZE, [[80 * MIB, randomBytes(MIB, 6)]]), path)
  const other = (await rig.estimate()).disks[0]!
  assert.deepEqual([other.mapAt, other.dataBytes], [null, MIB])
})
