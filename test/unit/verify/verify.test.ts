/** `swam verify` on real images and records: what is equal, what differs and where, and what is not judged at all. */
import assert from 'node:assert/strict'
import { mkdtemp, open, readFile, rm, truncate, utimes, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { after, before, test } from 'node:test'
import { ImageSource } from '../../../lib/catalog/image-files.ts'
import { RefusedError } from '../../../lib/core/errors.ts'
import { PROOF_DIFFERENCES_MAX, PROOF_READ_BYTES_MAX } from '../../../lib/core/limits.ts'
import { LEAF_BYTES, MIB } from '../../../lib/core/units.ts'
import { writersOf } from '../../../lib/host/open-files.ts'
import { type LeafHead, LeafRecord } from '../../../lib/proof/leaf-file.ts'
import { ProofFolder } from '../../../lib/proof/proof-folder.ts'
import { EXIT, exitCodeOf } from '../../../server/cli/exit-codes.ts'
import { verifyText } from '../../../server/cli/verify.ts'
import { compareWithRecord } from '../../../server/verify/compare.ts'
import { type GuestRecords, recordsOf } from '../../../server/verify/records.ts'
import { InUseError, verify } from '../../../server/verify/verify.ts'
import { noise } from '../engine/rig.ts'
import { keepRecord, UUID } from './record.ts'

const SIZE = 3 * MIB + 4096
const LEAVES = 49

let directory = ''
let image = ''
let folder: ProofFolder
before(async () => {
  directory = await mkdtemp(join(tmpdir(), 'swam-verify-'))
  image = join(directory, 'vm.img')
  folder = new ProofFolder({ path: join(directory, 'proof') })
})
after(async () => await rm(directory, { recursive: true }))

function disk(): Buffer {
  const bytes = noise(SIZE, 3)
  bytes.fill(0, 5 * LEAF_BYTES, 9 * LEAF_BYTES)
  return bytes
}

/** An image, and the record of it. */
async function proved(head: Partial<LeafHead> = {}): Promise<Buffer> {
  const bytes = disk()
  await writeFile(image, bytes)
  await keepRecord(folder, bytes, image, { unknown: [20, 22], ...head })
  return bytes
}

const ask =
  (state: string | undefined = undefined) =>
  (): Promise<GuestRecords> =>
    recordsOf('vm', { folder, libvirt: { state: async () => state }, images: [directory] })

async function poke(at: number): Promise<void> {
  const file = await open(image, 'r+')
  const byte = Buffer.alloc(1)
  await file.read(byte, 0, 1, at)
  byte[0]! ^= 1
  await file.write(byte, 0, 1, at)
  await file.close()
}

test('an image that is what was proved is equal', async () => {
  await proved()
  const report = await verify({ ask: ask() })
  assert.equal(report.equal, true)
  const [vda] = report.disks
  assert.deepEqual(
    [vda?.leaves, vda?.equalLeaves, vda?.differentLeaves, vda?.unknownLeaves],
    [LEAVES, LEAVES - 2, 0, 2],
  )
  const text = verifyText(report)
  assert.match(text, /vm came from fra1 at .*, root (cd){32}/)
  assert.match(text, /equal: 47 pieces of 64 KiB\n {2}not judged: 2 pieces/)
  assert.match(text, /was not written to since/)
})

test('bits that flipped, also in a hole and in the short last leaf, are found where they are', async () => {
  await proved({ at: Date.now() - 3_600_000 })
  for (const at of [3 * LEAF_BYTES + 77, 6 * LEAF_BYTES, SIZE - 1]) await poke(at)
  const report = await verify({ ask: ask() })
  assert.equal(report.equal, false)
  assert.deepEqual(report.disks[0]?.differences, [3 * LEAF_BYTES, 6 * LEAF_BYTES, 48 * LEAF_BYTES])
  assert.equal(report.disks[0]?.differentLeaves, 3)
  const text = verifyText(report)
  assert.match(text, /DIFFERS: 3 of 47 pieces of 64 KiB; at 196608, 393216, 3145728/)
  assert.match(text, /a guest that has run since has changed its disk/)
})

test('of many differences some are named, and all are counted', async () => {
  await proved()
  for (let leaf = 22; leaf < 22 + PROOF_DIFFERENCES_MAX + 4; leaf++) await poke(leaf * LEAF_BYTES)
  const [found] = (await verify({ ask: ask() })).disks
  assert.equal(found?.differentLeaves, PROOF_DIFFERENCES_MAX + 4)
  assert.deepEqual(
    found?.differences,
    Array.from({ length: PROOF_DIFFERENCES_MAX }, (_, at) => (22 + at) * LEAF_BYTES),
  )
})

test('of a large image a little is held at once', async () => {
  await proved()
  const [found] = await folder.find('vm')
  const record = await LeafRecord.open(found!.path)
  const source = await ImageSource.open(image)
  const { read } = source
  let longest = 0
  source.read = async (offset, length) => {
    longest = Math.max(longest, length)
    return await read.call(source, offset, length)
  }
  try {
    assert.equal((await compareWithRecord(source, record, found!.path)).equalLeaves, LEAVES - 2)
    assert.equal(longest, PROOF_READ_BYTES_MAX)
  } finally {
    await source.close()
    await record.close()
  }
})

test('what the record does not know is not judged', async () => {
  await proved()
  await poke(20 * LEAF_BYTES)
  assert.equal((await verify({ ask: ask() })).equal, true)
})

test('an image elsewhere is held against the record by its name, as the old one at the source', async () => {
  const bytes = await proved({ direction: 'out', image: join(directory, 'gone.img') })
  await assert.rejects(verify({ ask: ask() }), (error) => exitCodeOf(error) === EXIT.notFound)
  const other = join(directory, 'copy.img')
  await writeFile(other, bytes)
  const report = await verify({ ask: ask(), images: new Map([['vda', other]]) })
  assert.equal(report.equal, true)
  assert.match(verifyText(report), /vm left for fra1/)
  await assert.rejects(
    verify({ ask: ask(), images: new Map([['vdz', other]]) }),
    /no disk vdz was proved here/,
  )
})

for (const state of ['running', 'paused']) {
  test(`a guest that is ${state} is not judged`, async () => {
    await proved()
    await assert.rejects(verify({ ask: ask(state) }), (error: unknown) => {
      assert.ok(error instanceof InUseError)
      assert.match(error.message, new RegExp(`vm is ${state} at this host`))
      assert.equal(exitCodeOf(error), 7)
      return true
    })
  })
}

test('nor one that is started while its image is read', async () => {
  await proved()
  let asked = 0
  await assert.rejects(
    verify({ ask: async () => await ask(asked++ === 0 ? undefined : 'running')() }),
    InUseError,
  )
})

test('nor an image that a process has open for writing, whatever libvirt says', async () => {
  await proved()
  assert.deepEqual(await writersOf(image), [])
  const file = await open(image, 'r+')
  try {
    assert.deepEqual(
      (await writersOf(image)).map(({ pid }) => pid),
      [process.pid],
    )
    await assert.rejects(verify({ ask: ask() }), /vda: .*vm.img is open for writing \(process \d+, /)
  } finally {
    await file.close()
  }
  const reader = await open(image, 'r')
  assert.equal((await verify({ ask: ask() })).equal, true)
  await reader.close()
})

test('a record whose digests were changed is no measure', async () => {
  await proved()
  const path = join(directory, 'proof', `${UUID}-vda.leaves`)
  const bytes = await readFile(path)
  bytes[32 * 1024 + 5]! ^= 1
  await writeFile(path, bytes)
  await assert.rejects(verify({ ask: ask() }), (error: unknown) => {
    assert.ok(error instanceof RefusedError)
    assert.match(error.message, /its digests do not fit its root/)
    return true
  })
})

test('an image of another size, or that was written to meanwhile, is refused', async () => {
  await proved()
  await truncate(image, SIZE - 4096)
  await assert.rejects(verify({ ask: ask() }), /the disk that was proved has 3149824/)
  await proved()
  let asked = 0
  await assert.rejects(
    verify({
      ask: async () => {
        const records = await ask()()
        if (asked++ > 0) throw new Error('it came so far')
        return records
      },
    }),
    /it came so far/,
  )
})

test('a guest of which nothing was proved, or two of one name', async () => {
  await proved()
  const none = recordsOf('other', { folder, libvirt: { state: async () => undefined }, images: [] })
  await assert.rejects(none, (error: unknown) => (error as { code?: string }).code === 'SWAM_NOT_FOUND')
  await proved({ uuid: '55555555-5555-4555-8555-555555555555' })
  await assert.rejects(ask()(), /2 guests were called vm here: say which/)
  await rm(join(directory, 'proof', '55555555-5555-4555-8555-555555555555-vda.leaves'))
})

test('an old time of the image is no proof that it was not written to, and is only told', async () => {
  await proved({ at: Date.now() - 1000 })
  await poke(0)
  await utimes(image, new Date(1000), new Date(1000))
  const report = await verify({ ask: ask() })
  assert.equal(report.equal, false)
  assert.match(verifyText(report), /DIFFERS: 1 of 47/)
})
