/**
 * docs/limits.md is lib/core/limits.ts as tables: same names, values and reasons, in the same order. Where they differ,
 * `SWAM_WRITE_DOCS=1 bin/node --test test/unit/config/limits.test.ts` writes the document anew.
 */
import assert from 'node:assert/strict'
import { execFileSync } from 'node:child_process'
import { existsSync, readFileSync, writeFileSync } from 'node:fs'
import { test } from 'node:test'
import * as limits from '../../../lib/core/limits.ts'
import { bytesText, durationText } from '../../../server/cli/format.ts'

const SOURCE = 'lib/core/limits.ts'
const ROOT = new URL('../../../', import.meta.url)
const VALUES: Readonly<Record<string, number>> = { ...limits }
const DOCUMENT = new URL('../../../docs/limits.md', import.meta.url)

const HEAD = `# Limits

Every limit that guards memory, disk and waiting of a host against peers, guests, libvirt and configuration. The numbers
live in lib/core/limits.ts; the tables are made from it (a test compares them, another one holds how they depend on each other). What the administrator sets (window, index, rate, deadline of the hook) is in config/swam.example.toml.

## Memory of swamd as a whole

With the defaults (windowMiB 256, indexMiB 256) swamd takes up to 550 MiB in the tests of two migrations at once; it is
held below 1.5 GiB in those of eight (test/long/swam-resources.test.ts). What it can be made to hold at most, whoever wants it:

| what | at most |
|---|---|
| program, libraries, five worker threads, objects | 160 MiB |
| sent: data in shared memory (\`SlabPool\`), on its way to the far side | windowMiB |
| sent: writes of guests that are not cut yet (\`SendWindow\`; what is in shared memory counts here too) | windowMiB, and 2 MiB a disk |
| sent: places that guests rewrite, as they were described last (\`VersionMemory\`) | 64 MiB |
| sent: what QEMU has written and was not told so | 64 MiB and one payload for each NBD connection; QEMU itself: 16 MiB |
| received: chunks that are looked for, asked for or being written (\`ByteBudget\`) | half of windowMiB, of these half for one disk |
| received: what came unasked | 8 MiB a disk, 256 MiB a migration |
| received: old content of chunks that are looked through | 16 MiB a disk |
| received: chunks that are nearly written, kept for other migrations | 16 MiB |
| frames in flight, each way (\`WindowPool\`) | 256 MiB, and 2 to 6 MiB a bundle |
| frames that a far end does not read | 40 MiB and 131,072 frames (some 40 MiB) a channel, then it is let go |
| streams (RAM) that QEMU does not take | 4 MiB each, the first of a migration 16 MiB |
| index of images | 1.5 × indexMiB (384 MiB); their handprints 40 MiB; the thread that reads maps 32 MiB |
| qcow2 images that are open as sources | 16 processes of QEMU of some 30 MiB, and one for a scan |
| places of what a session delivered | 100 bytes for each 32 KiB of a disk, 100 MiB a disk; of its blocks 16 MiB a disk |
| which parts of a disk were sent | a bit for each 64 KiB: 200 KB for 100 GB, 16 MiB a disk at most |
| proofs: pages of a disk's map, sets of leaves | 1 MiB a disk, and 4 MiB where it is written in very many places |
| proofs: leaves that are put together (\`LeafSlots\`) | 32 MiB |
| proofs: what is read back | 8 MiB a disk while a FLUSH waits, else 1 MiB |
| streams of literals | 19 MiB a disk that is sent, 16 MiB a disk that is received |
| an estimate of this host's (one at a time): thread, chunks that are known to be there twice, chunks that are looked at closely | 80 MiB; of a qcow2 two processes of QEMU of some 30 MiB |
| bookkeeping of chunks under way | 3 MiB for sending a disk, 32 MiB for receiving it |

The index takes its memory page by page, wherever a key lies: some 0.3 MiB for each migration that brings a hundred new blocks and chunks, until all of it is
there after hundreds. Beyond that memory is flat, once \`bin/swamd\` has told glibc to give back what is larger than 256 KiB at once: left to itself it keeps up to 32 MiB in its
heap, which then grows (a hundred migrations in a row with a small index: 433 to 545 MiB; with it 297 to 426 MiB. 2026-11-27).

windowMiB is the lever: on a host with little memory 64 is enough for a link of 1 Gbit/s.
`

const TAKEN_OUT = '\n## Taken out once\n'

interface Limit {
  readonly section: string
  readonly name: string
  readonly reason: string
}

/** A one-line comment directly before `export const NAME: number`, under a line `// ---- Section ---…`. */
function limitsOf(source: string): Limit[] {
  const found: Limit[] = []
  let section = ''
  const line = /^\/\/ ---- (.+?) -+$|^(?:\/\*\* (.+) \*\/\n)?export const ([A-Z0-9_]+): number = /gm
  for (const match of source.matchAll(line)) {
    if (match[1] !== undefined) section = match[1]
    else found.push({ section, name: match[3]!, reason: match[2] ?? '' })
  }
  return found
}

function valueText(name: string, value: number): string {
  if (/_BYTES(_|$)/.test(name)) return bytesText(value)
  if (/_MS(_|$)/.test(name)) return durationText(value)
  return value.toLocaleString('en')
}

const found: readonly Limit[] = limitsOf(readFileSync(new URL(SOURCE, ROOT), 'utf8'))

test('each limit has a unit in its name or is a count, and a reason', () => {
  assert.deepEqual(new Set(found.map((limit) => limit.name)), new Set(Object.keys(VALUES)))
  for (const { section, name, reason } of found) {
    assert.match(name, /_MAX$|_MS(_MIN)?$|_BYTES(_MIN)?$|_FRAMES$/, name)
    assert.ok(reason.length > 20, `${name}: expected a reason`)
    assert.ok(section !== '', `${name}: expected a section before it`)
  }
})

test('docs/limits.md is up to date', () => {
  let text = HEAD
  let section = ''
  for (const limit of found) {
    if (limit.section !== section) text += `\n## ${limit.section}\n\n| limit | value | why |\n|---|---|---|\n`
    section = limit.section
    text += `| ${limit.name} | ${valueText(limit.name, VALUES[limit.name]!)} | ${limit.reason} |\n`
  }
  const whole = readFileSync(DOCUMENT, 'utf8')
  // What follows is written by hand.
  const end = whole.indexOf(TAKEN_OUT)
  assert.ok(end >= 0, `docs/limits.md: expected ${JSON.stringify(TAKEN_OUT)}`)
  if (process.env['SWAM_WRITE_DOCS'] === '1') writeFileSync(DOCUMENT, text + whole.slice(end))
  else assert.equal(whole.slice(0, end), text)
})

/** Names that only those constants have that are a limit. */
const LIMIT =
  /^(?:export )?const ([A-Z0-9_]+_(?:MAX|MS|MS_MIN|DEADLINE|TIMEOUT|AT_ONCE))\b(?:: number)? = (?!.*_MAX\b)/gm
/** They bound no memory, disk or waiting: a number of the protocol, a step of the pacing, a rate. */
const NO_LIMIT = new Set([
  'lib/catalog/chunk-index.ts OFFSET_MAX',
  'lib/catalog/chunk-index.ts FILL_MAX',
  'lib/core/loop-watch.ts PIECE_MS',
  'lib/core/loop-watch.ts REST_INTERVAL_MS',
  'lib/core/loop-watch.ts WORK_INTERVAL_MS',
  'lib/core/loop-watch.ts WORK_MS',
  'lib/nbd/protocol/constants.ts NBD_STRING_BYTES_MAX',
  'lib/peer/channel.ts COPY_BYTES_MAX',
  'lib/peer/keepalive.ts TICK_MS',
  'lib/peer/pacing.ts PROBE_MS_MIN',
  'lib/peer/rate-limit.ts BURST_MS',
  'lib/peer/rate-limit.ts WAIT_MS_MIN',
  'lib/ram/passthrough.ts COMPRESS_RATE_MAX',
  'lib/wire/frame.ts SEQUENCE_MAX',
  'server/vitals.ts SAY_AGAIN_MS',
])

test('no limit stands elsewhere', () => {
  const paths = execFileSync('git', ['ls-files', 'lib', 'server', 'config', 'hooks'], {
    cwd: ROOT,
    encoding: 'utf8',
  })
  const elsewhere = new Set<string>()
  for (const path of paths.split('\n').filter((name) => name.endsWith('.ts') && name !== SOURCE)) {
    const text = existsSync(new URL(path, ROOT)) ? readFileSync(new URL(path, ROOT), 'utf8') : ''
    for (const match of text.matchAll(LIMIT)) elsewhere.add(`${path} ${match[1]}`)
  }
  assert.deepEqual(
    [...elsewhere].filter((name) => !NO_LIMIT.has(name)),
    [],
  )
  assert.deepEqual(
    [...NO_LIMIT].filter((name) => !elsewhere.has(name)),
    [],
    'what is excused must exist',
  )
})
