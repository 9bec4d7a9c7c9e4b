/** The proofs of a migration's disks, from the first write to the records that both hosts keep, and what the history says of them. */
import assert from 'node:assert/strict'
import { mkdtemp, readdir, rm, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { after, before, test } from 'node:test'
import { Describer } from '../../../lib/chunk/describer.ts'
import { SlabPool } from '../../../lib/chunk/slab.ts'
import { ByteBudget } from '../../../lib/core/byte-budget.ts'
import { LEAF_BYTES, MIB } from '../../../lib/core/units.ts'
import { DiskAccount } from '../../../lib/engine/account.ts'
import { LeafSlots } from '../../../lib/engine/leaf-assembly.ts'
import { DiskLink } from '../../../lib/engine/link.ts'
import { DiskReceiver } from '../../../lib/engine/receiver.ts'
import { DiskSender } from '../../../lib/engine/sender.ts'
import { LeafRecord } from '../../../lib/proof/leaf-file.ts'
import { ProofFolder } from '../../../lib/proof/proof-folder.ts'
import { ENGINE_FEATURES } from '../../../lib/wire/disk.ts'
import { FEATURE_PROOF } from '../../../lib/wire/disk-proof.ts'
import { MigrationProofs } from '../../../server/migration/proofs.ts'
import { MigrationRecord } from '../../../server/migration/record.ts'
import { plainRoot } from '../engine/proof-rig.ts'
import { DurableDevice, noise, wire } from '../engine/rig.ts'

const UUID = '66666666-6666-4666-8666-666666666666'
const SIZE = 2 * MIB
const LEAVES = SIZE / LEAF_BYTES
const SIDES = { out: 'out', in: 'in' } as const

let directory = ''
const describer = new Describer({ workers: 1 })
before(async () => {
  directory = await mkdtemp(join(tmpdir(), 'swam-proofs-'))
})
after(async () => {
  await describer.close()
  await rm(directory, { recursive: true })
})

const warnings: string[] = []
const log = { warn: (_: unknown, text: string) => warnings.push(text) } as never

function proofsOf(direction: 'in' | 'out', folder: ProofFolder): MigrationProofs {
  const slots = new LeafSlots({ bytesMax: 4 * MIB })
  return new MigrationProofs(
    { folder, read: false, describer, digester: describer, slots },
    {
      ...{ guest: 'vm', uuid: UUID, peer: 'fra1', direction, log },
      imageOf: (target) => ({ source: `/images/${direction}-${target}.img`, format: 'raw' }),
    },
  )
}

interface Moved {
  readonly sender: DiskSender
  readonly records: Readonly<Record<'in' | 'out', MigrationRecord>>
  readonly proofs: Readonly<Record<'in' | 'out', MigrationProofs>>
  readonly folders: Readonly<Record<'in' | 'out', ProofFolder>>
  readonly device: DurableDevice
}

async function begin(name: string): Promise<Moved> {
  const device = new DurableDevice(Buffer.alloc(SIZE), 512)
  const side = <Value>(make: (direction: 'in' | 'out') => Value): Record<'in' | 'out', Value> => ({
    out: make(SIDES.out),
    in: make(SIDES.in),
  })
  const folders = side((direction) => new ProofFolder({ path: join(directory, name, direction) }))
  const proofs = side((direction) => proofsOf(direction, folders[direction]))
  const records = side((direction) => {
    const record = new MigrationRecord({ id: UUID, guest: 'vm', uuid: UUID, peer: 'fra1', direction })
    record.accelerated = true
    return record
  })
  const joined = wire([...ENGINE_FEATURES, FEATURE_PROOF])
  const receiverProof = await proofs.in.receiver('vda', device)
  const senderProof = await proofs.out.sender('vda', SIZE)
  const far: DiskLink = new DiskLink(joined.b, (message) => {
    if (message.type !== 'open') return undefined
    const account = new DiskAccount('vda', SIZE)
    records.in.addDisk(account, receiverProof)
    new DiskReceiver({
      ...{ link: far, disk: 0, epoch: message.epoch, account, sources: [], sessionEntriesMax: 100 },
      device: receiverProof?.device ?? device,
      ...(receiverProof === undefined ? {} : { proof: receiverProof }),
      memory: new ByteBudget({ bytesMax: 8 * MIB }),
    })
    void far.send({ type: 'opened', disk: 0, epoch: message.epoch, errno: 0, text: '' }, 0)
    return { onMessage: () => undefined, onLost: () => undefined }
  })
  const account = new DiskAccount('vda', SIZE)
  const sender = new DiskSender({
    ...{
      link: new DiskLink(joined.a),
      disk: 0,
      epoch: 3,
      size: SIZE,
      blockSizes: device.blockSizes,
      account,
    },
    slabs: new SlabPool({ bytesMax: 32 * MIB }),
    describe: (bytes) => describer.describe(bytes),
    limits: { windowBytes: 8 * MIB, drainMs: 1000, flushDeadlineMs: 5000 },
    ...(senderProof === undefined ? {} : { proof: senderProof }),
  })
  records.out.addDisk(account, senderProof)
  await sender.open(1, 'vda')
  return { sender, records, proofs, folders, device }
}

test('both hosts keep a record of what left and what came, and both histories have its root', async () => {
  const target = noise(SIZE, 1)
  const { sender, records, proofs, folders } = await begin('moved')
  assert.equal(records.out.report().verified, null, 'while it is under way nothing is said')
  await sender.write(0, Buffer.from(target))
  await sender.flush()
  // Changed after the last FLUSH: nobody proved it.
  await sender.write(3 * LEAF_BYTES, noise(LEAF_BYTES, 2))
  await sender.settle()
  await sender.close()
  for (const direction of ['out', 'in'] as const) {
    records[direction].finish('done')
    await proofs[direction].end(true)
    const report = records[direction].report()
    assert.equal(report.verified, true)
    assert.equal(report.disks[0]?.root, plainRoot(target))
    assert.deepEqual(
      { ...report.disks[0]?.proof, at: 0 },
      { at: 0, leaves: LEAVES, provedLeaves: LEAVES, unreadLeaves: null },
    )
    const [found, ...more] = await folders[direction].find('vm')
    assert.deepEqual(more, [])
    const record = await LeafRecord.open(found!.path)
    assert.equal(record.head.root, plainRoot(target))
    assert.equal(record.head.direction, direction)
    assert.equal(record.head.image, `/images/${direction}-vda.img`)
    assert.deepEqual(record.unknown.runs(), [{ first: 3, end: 4 }])
    assert.equal(record.head.fileRoot, plainRoot(target, [{ first: 3, end: 4 }]))
    await record.close()
  }
})

test('a guest that stayed leaves no record, and its history no verdict but of a proof that failed', async () => {
  const { sender, records, proofs, folders } = await begin('stayed')
  await sender.write(0, noise(SIZE, 1))
  await sender.flush()
  await sender.close()
  for (const direction of ['out', 'in'] as const) {
    records[direction].finish('failed')
    await proofs[direction].end(false)
    assert.equal(records[direction].report().verified, null)
    assert.deepEqual(await readdir(join(directory, 'stayed', direction)), [])
    assert.deepEqual(await folders[direction].find('vm'), [])
    records[direction].disproved = true
    assert.equal(records[direction].report().verified, false)
  }
})

test('a host that cannot keep a map goes without, says so, and the other end hears of it', async () => {
  await writeFile(join(directory, 'full'), '')
  const broken = proofsOf('in', new ProofFolder({ path: join(directory, 'full', 'proof') }))
  warnings.length = 0
  assert.equal(await broken.receiver('vda', new DurableDevice(Buffer.alloc(SIZE), 512)), undefined)
  assert.deepEqual(warnings, ['no proof of this disk: its map cannot be kept'])
  const record = new MigrationRecord({ id: UUID, guest: 'vm', uuid: UUID, peer: 'fra1', direction: 'in' })
  record.accelerated = true
  record.addDisk(new DiskAccount('vda', SIZE))
  record.finish('done')
  assert.deepEqual(
    [record.report().verified, record.report().unverified],
    [null, 'vda: there is no map of it'],
  )
})
