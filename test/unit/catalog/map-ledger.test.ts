/** What the folder of maps remembers: read as it was written; what is damaged, too much or no file costs only what it said. */
import assert from 'node:assert/strict'
import {
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  rmSync,
  statSync,
  symlinkSync,
  writeFileSync,
} from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { type TestContext, test } from 'node:test'
import fc from 'fast-check'
import { type LedgerEntry, MapLedger } from '../../../lib/catalog/map-ledger.ts'
import { CATALOG_LEDGER_BYTES_MAX, CATALOG_MAPS_MAX } from '../../../lib/core/limits.ts'

function folder(context: TestContext): string {
  const directory = mkdtempSync(join(tmpdir(), 'swam-ledger-'))
  context.after(() => rmSync(directory, { recursive: true, force: true }))
  return directory
}

const name = (number: number): string => number.toString(16).padStart(32, '0')
const ENTRY: LedgerEntry = { dev: 66n, ino: 2n ** 64n - 1n, seenAtMs: 3, usedAtMs: 2, mapBytes: 1 }

async function entries(directory: string): Promise<Map<string, LedgerEntry>> {
  const ledger = await MapLedger.read(directory)
  return new Map(ledger.names.map((one) => [one, ledger.get(one)!]))
}

test('what is written is read; the folder is made, and nothing is written without news', async (context) => {
  const directory = join(folder(context), 'catalog')
  const ledger = await MapLedger.read(directory)
  await ledger.save()
  assert.throws(() => readdirSync(directory), 'nothing is known yet')
  ledger.set(name(1), ENTRY)
  ledger.set(name(2), { ...ENTRY, dev: 0n })
  ledger.set(name(3), ENTRY)
  ledger.delete(name(3))
  await ledger.save()
  assert.deepEqual(readdirSync(directory), ['seen'])
  assert.equal(statSync(join(directory, 'seen')).mode & 0o777, 0o600)
  assert.equal(statSync(directory).mode & 0o777, 0o700)
  const expected = new Map([
    [name(1), ENTRY],
    [name(2), { ...ENTRY, dev: 0n }],
  ])
  assert.deepEqual(await entries(directory), expected)
  const { ino } = statSync(join(directory, 'seen'))
  ledger.set(name(1), { ...ENTRY })
  await ledger.save()
  assert.equal(statSync(join(directory, 'seen')).ino, ino)
})

test('property: whatever a line becomes, the others are read, and nothing else is', async (context) => {
  const directory = folder(context)
  const ledger = await MapLedger.read(directory)
  for (let at = 0; at < 5; at++) ledger.set(name(at), { ...ENTRY, mapBytes: at })
  await ledger.save()
  const whole = readFileSync(join(directory, 'seen'), 'latin1').split('\n')
  await fc.assert(
    fc.asyncProperty(fc.nat({ max: 4 }), fc.string({ unit: 'binary', maxLength: 200 }), async (at, text) => {
      const line = text.replaceAll('\n', ' ')
      writeFileSync(join(directory, 'seen'), whole.with(at, `x${line}`).join('\n'))
      const found = await entries(directory)
      assert.deepEqual([...found.keys()], [0, 1, 2, 3, 4].filter((one) => one !== at).map(name))
    }),
    { numRuns: 50 },
  )
})

test('lines of a number too long, of too few, of another case: none', async (context) => {
  const directory = folder(context)
  const bad = [
    `${name(1)} 1 2 3 4`,
    `${name(2)} 1 2 3 4 5 6`,
    `${name(3)} 1 2 3 4 1${'0'.repeat(15)}`,
    `${name(4)} 1 2 -3 4 5`,
    `${name(0xab).toUpperCase()} 1 2 3 4 5`,
    `../${name(5)} 1 2 3 4 5`,
    ` ${name(6)} 1 2 3 4 5`,
    `${name(7)} 1 2 3 4 5\r`,
  ]
  writeFileSync(join(directory, 'seen'), `${bad.join('\n')}\n${name(9)} 1 2 3 4 5`)
  assert.deepEqual([...(await entries(directory)).keys()], [name(9)])
})

test('a file that is too large, a link, a folder are none, and a new one takes the place', async (context) => {
  const directory = folder(context)
  const place = join(directory, 'seen')
  const line = `${name(1)} 1 2 3 4 5\n`
  writeFileSync(place, line + ' '.repeat(CATALOG_LEDGER_BYTES_MAX - line.length))
  assert.equal((await entries(directory)).size, 1)
  writeFileSync(place, line + ' '.repeat(CATALOG_LEDGER_BYTES_MAX - line.length + 1))
  assert.equal((await entries(directory)).size, 0)
  const elsewhere = join(directory, 'elsewhere')
  writeFileSync(elsewhere, line)
  rmSync(place)
  symlinkSync(elsewhere, place)
  symlinkSync(elsewhere, `${place}.new`)
  const ledger = await MapLedger.read(directory)
  assert.deepEqual(ledger.names, [])
  ledger.set(name(2), ENTRY)
  await ledger.save()
  assert.deepEqual([...(await entries(directory)).keys()], [name(2)])
  assert.equal(readFileSync(elsewhere, 'latin1'), line, 'no link is written through')
  rmSync(place)
  mkdirSync(place)
  assert.equal((await entries(directory)).size, 0)
})

test('never more than so many: those that were seen longest ago go, and a file of them is read whole', async (context) => {
  const directory = folder(context)
  const ledger = await MapLedger.read(directory)
  const wide = { dev: 2n ** 64n - 1n, ino: 2n ** 64n - 1n, usedAtMs: 1e15 - 1, mapBytes: 1e15 - 1 }
  for (let at = 0; at < CATALOG_MAPS_MAX + 3; at++) ledger.set(name(at), { ...wide, seenAtMs: 9e14 + at })
  await ledger.save()
  const found = await entries(directory)
  assert.equal(found.size, CATALOG_MAPS_MAX)
  assert.deepEqual([found.has(name(2)), found.has(name(3))], [false, true])
})
