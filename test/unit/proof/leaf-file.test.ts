/** Records on a real disk: what was sealed is what is read, and one that is torn, changed or hostile is noticed. */
import assert from 'node:assert/strict'
import { mkdtemp, open, readFile, rm, stat, symlink, truncate, utimes, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { after, before, test } from 'node:test'
import { sha256 } from '../../../lib/chunk/digest.ts'
import { RefusedError } from '../../../lib/core/errors.ts'
import {
  PROOF_HEAD_BYTES,
  PROOF_RECORD_AGE_MS,
  PROOF_RECORDS_MAX,
  PROOF_RUNS_MAX,
} from '../../../lib/core/limits.ts'
import { LEAF_BYTES } from '../../../lib/core/units.ts'
import { headOf, LeafRecord } from '../../../lib/proof/leaf-file.ts'
import { ProofFolder } from '../../../lib/proof/proof-folder.ts'

const UUID = '33333333-3333-4333-8333-333333333333'
const LEAVES = 300
const HEAD = {
  guest: 'vm',
  uuid: UUID,
  target: 'vda',
  image: '/images/vm.img',
  format: 'raw',
  peer: 'fra1',
  direction: 'in',
  at: 1_700_000_000_000,
  size: LEAVES * LEAF_BYTES - 4096,
  root: 'ab'.repeat(32),
} as const

let directory = ''
before(async () => {
  directory = await mkdtemp(join(tmpdir(), 'swam-records-'))
})
after(async () => await rm(directory, { recursive: true }))

async function kept(
  folder: ProofFolder,
  changes: Partial<typeof HEAD> | { target: string } = {},
): Promise<string> {
  const map = await folder.begin(HEAD.size)
  map.zero(0, LEAVES)
  map.put(2, sha256(Buffer.from('two')))
  map.put(299, sha256(Buffer.from('last')))
  map.forget(10, 20)
  map.forget(30, 31)
  await folder.keep(map, { ...HEAD, ...changes })
  return join(directory, 'proof', `${UUID}-${changes.target ?? 'vda'}.leaves`)
}

test('a record says what the map knew, and is sparse', async () => {
  const folder = new ProofFolder({ path: join(directory, 'proof') })
  await folder.start()
  const path = await kept(folder)
  const record = await LeafRecord.open(path)
  const { fileRoot, ...head } = record.head
  assert.deepEqual(head, HEAD)
  assert.match(fileRoot, /^[0-9a-f]{64}$/)
  assert.deepEqual(record.unknown.runs(), [
    { first: 10, end: 20 },
    { first: 30, end: 31 },
  ])
  assert.ok((await record.readPage(0)).subarray(64, 96).equals(sha256(Buffer.from('two'))))
  assert.ok((await record.readPage(2)).subarray(43 * 32, 44 * 32).equals(sha256(Buffer.from('last'))))
  await record.close()
  assert.equal((await stat(path)).mode & 0o777, 0o600)
  assert.deepEqual(
    (await folder.find('vm')).map(({ head: { target } }) => target),
    ['vda'],
  )
  assert.deepEqual((await folder.find(UUID)).length, 1)
  assert.deepEqual(await folder.find('other'), [])
})

test('what a daemon that was killed left under way is nothing, and a record takes the place of the one before', async () => {
  const folder = new ProofFolder({ path: join(directory, 'proof') })
  const left = await folder.begin(HEAD.size)
  await left.turn(async () => undefined)
  await kept(folder)
  await kept(folder)
  const next = new ProofFolder({ path: join(directory, 'proof') })
  await next.start()
  await assert.rejects(stat(left.path))
  assert.equal((await next.find('vm')).length, 1)
  await left.close()
  const dropped = await next.begin(HEAD.size)
  await next.drop(dropped)
  await assert.rejects(stat(dropped.path))
})

test('records are kept within a number, a size and an age', async () => {
  let now = Date.now()
  const path = join(directory, 'proof')
  await rm(path, { recursive: true })
  const folder = new ProofFolder({ path, recordsMax: 3, wallMs: () => now })
  await folder.start()
  const paths: string[] = []
  for (const [at, target] of ['vda', 'vdb', 'vdc', 'vdd'].entries()) {
    paths.push(await kept(folder, { target }))
    const time = new Date(now - 10_000 + at * 1000)
    await utimes(paths[at]!, time, time)
  }
  await folder.prune()
  const targets = async (): Promise<string[]> =>
    (await folder.find('vm')).map(({ head }) => head.target).sort()
  assert.deepEqual(await targets(), ['vdb', 'vdc', 'vdd'])
  const bytes = (await stat(paths[3]!)).blocks * 512
  await new ProofFolder({ path, recordsBytesMax: 2 * bytes + 100, wallMs: () => now }).prune()
  assert.deepEqual(await targets(), ['vdc', 'vdd'])
  now += PROOF_RECORD_AGE_MS + 60_000
  await folder.prune()
  assert.deepEqual(await targets(), [])
})

test('what does not fit into a head becomes no record; of very many files so many are looked at', async () => {
  const path = join(directory, 'many')
  const folder = new ProofFolder({ path })
  await folder.start()
  const map = await folder.begin(HEAD.size)
  const image = `/${'x'.repeat(PROOF_HEAD_BYTES)}`
  await assert.rejects(folder.keep(map, { ...HEAD, image }), /a head of \d+ bytes/)
  await folder.drop(map)
  assert.deepEqual(await folder.find('vm'), [])
  await folder.keep(await folder.begin(HEAD.size), HEAD)
  for (let file = 0; file < PROOF_RECORDS_MAX - 1; file++) await writeFile(join(path, `0${file}.leaves`), '')
  assert.equal((await folder.find('vm')).length, 1)
  await writeFile(join(path, '0.leaves'), '')
  assert.equal((await folder.find('vm')).length, 0)
})

test('a name that is none becomes no file', async () => {
  const folder = new ProofFolder({ path: join(directory, 'proof') })
  const map = await folder.begin(HEAD.size)
  await assert.rejects(folder.keep(map, { ...HEAD, target: '../vda' }), /is no name for a record/)
  await folder.drop(map)
})

/** Of a sealed record. */
const DAMAGES: readonly {
  readonly name: string
  readonly damage: (path: string) => Promise<void>
  readonly finding: RegExp
}[] = [
  { name: 'nothing', damage: (path) => truncate(path, 0), finding: /0 bytes/ },
  { name: 'its head only', damage: (path) => truncate(path, PROOF_HEAD_BYTES), finding: /bytes, expected/ },
  {
    name: 'less by a byte',
    damage: async (path) => truncate(path, (await stat(path)).size - 1),
    finding: /bytes, expected/,
  },
  { name: 'another magic', damage: (path) => poke(path, 0, 1), finding: /begin with SWAMLEAF/ },
  { name: 'another version', damage: (path) => poke(path, 11, 3), finding: /of version 2/ },
  { name: 'a bit of its head', damage: (path) => poke(path, 40, 1), finding: /does not fit its digest/ },
  {
    name: 'a bit of its runs',
    damage: async (path) => poke(path, (await stat(path)).size - 1, 1),
    finding: /runs do not fit/,
  },
  {
    name: 'a head of another kind',
    damage: (path) => rewrite(path, (head) => ({ ...head, size: -1 })),
    finding: /something else than a head/,
  },
  {
    name: 'a disk larger than any',
    damage: (path) => rewrite(path, (head) => ({ ...head, size: 2 ** 50 })),
    finding: /something else than a head/,
  },
  {
    name: 'more runs than there are',
    damage: (path) => rewrite(path, (head) => ({ ...head, runs: 3 })),
    finding: /bytes, expected/,
  },
  {
    name: 'a text that ends behind its head',
    damage: async (path) => {
      const bytes = await readFile(path)
      bytes.writeUInt32BE(PROOF_HEAD_BYTES, 12)
      await writeSigned(path, bytes)
    },
    finding: /a head of 32768 bytes/,
  },
  {
    name: 'more runs than any has',
    damage: (path) => rewrite(path, (head) => ({ ...head, runs: PROOF_RUNS_MAX + 1 })),
    finding: /says something else than a head does/,
  },
]

async function poke(path: string, at: number, bits: number): Promise<void> {
  const file = await open(path, 'r+')
  const byte = Buffer.alloc(1)
  await file.read(byte, 0, 1, at)
  byte[0]! ^= bits
  await file.write(byte, 0, 1, at)
  await file.close()
}

/** With a digest that fits. */
async function rewrite(path: string, change: (head: Record<string, unknown>) => object): Promise<void> {
  const bytes = await readFile(path)
  const length = bytes.readUInt32BE(12)
  const json = Buffer.from(JSON.stringify(change(JSON.parse(bytes.toString('utf8', 16, 16 + length)))))
  bytes.writeUInt32BE(json.length, 12)
  json.copy(bytes, 16)
  await writeSigned(path, bytes)
}

async function writeSigned(path: string, bytes: Buffer): Promise<void> {
  sha256(bytes.subarray(0, PROOF_HEAD_BYTES - 32)).copy(bytes, PROOF_HEAD_BYTES - 32)
  await writeFile(path, bytes)
}

for (const { name, damage, finding } of DAMAGES) {
  test(`a record of which is left, or is another: ${name}`, async () => {
    const folder = new ProofFolder({ path: join(directory, 'proof') })
    const path = await kept(folder)
    await damage(path)
    await assert.rejects(LeafRecord.open(path), (error: unknown) => {
      assert.ok(error instanceof RefusedError)
      assert.match(error.message, finding)
      return true
    })
    assert.ok((await folder.find('vm')).length <= 1, 'and it is no reason to fail')
  })
}

test('runs in disorder, with a digest that fits, are no record; nor is a link', async () => {
  const folder = new ProofFolder({ path: join(directory, 'proof') })
  const path = await kept(folder)
  const bytes = await readFile(path)
  const runsAt = bytes.length - 16
  bytes.writeUInt32BE(25, runsAt + 8)
  bytes.writeUInt32BE(15, runsAt + 12)
  const digest = sha256(bytes.subarray(runsAt)).toString('hex')
  await writeFile(path, bytes)
  await rewrite(path, (head) => ({ ...head, runsDigest: digest }))
  await assert.rejects(LeafRecord.open(path), /a run from leaf 25 to 15/)
  const link = join(directory, 'proof', `${UUID}-vdl.leaves`)
  await symlink(path, link)
  await assert.rejects(headOf(link))
})
