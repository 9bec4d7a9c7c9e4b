/**
 * docs/limits.md is lib/core/limits.ts as a table: same names, values and reasons, in the same order. Where they differ,
 * `SWAM_WRITE_DOCS=1 bin/node --test test/unit/config/limits.test.ts` writes the document anew.
 */
import assert from 'node:assert/strict'
import { readFileSync, writeFileSync } from 'node:fs'
import { test } from 'node:test'
import * as limits from '../../../lib/core/limits.ts'
import { bytesText, durationText } from '../../../server/cli/format.ts'

const SOURCE = new URL('../../../lib/core/limits.ts', import.meta.url)
const DOCUMENT = new URL('../../../docs/limits.md', import.meta.url)

const HEAD = `# Limits

Every limit that guards memory, disk and waiting of a host against peers, guests, libvirt and configuration. The numbers
live in lib/core/limits.ts, which also asserts how they depend on each other; this table is made from it (a test compares
them). What the administrator sets (window, index, rate, deadline of the hook) is in config/swam.example.toml. Limits of
one protocol (frames, channels, NBD) stand with its code: lib/peer/limits.ts, lib/wire, lib/nbd/protocol/constants.ts.

| limit | value | why |
|---|---|---|
`

interface Limit {
  readonly name: string
  readonly reason: string
}

/** A one-line comment directly before `export const NAME: number`. */
function limitsOf(source: string): Limit[] {
  const found: Limit[] = []
  for (const match of source.matchAll(/^(?:\/\*\* (.+) \*\/\n)?export const ([A-Z0-9_]+): number = /gm)) {
    found.push({ name: match[2]!, reason: match[1] ?? '' })
  }
  return found
}

function valueText(name: string, value: number): string {
  if (/_BYTES(_|$)/.test(name)) return bytesText(value)
  if (/_MS(_|$)/.test(name)) return durationText(value)
  return value.toLocaleString('en')
}

test('each limit has a unit in its name or is a count, and a reason', () => {
  const found = limitsOf(readFileSync(SOURCE, 'utf8'))
  assert.deepEqual(new Set(found.map((limit) => limit.name)), new Set(Object.keys(limits)))
  for (const { name, reason } of found) {
    assert.match(name, /_MAX$|_MS$/, name)
    assert.ok(reason.length > 20, `${name}: expected a reason`)
  }
})

test('docs/limits.md is up to date', () => {
  const values = limits as unknown as Readonly<Record<string, number>>
  const rows = limitsOf(readFileSync(SOURCE, 'utf8')).map(
    ({ name, reason }) => `| ${name} | ${valueText(name, values[name]!)} | ${reason} |`,
  )
  const text = `${HEAD}${rows.join('\n')}\n`
  if (process.env['SWAM_WRITE_DOCS'] === '1') writeFileSync(DOCUMENT, text)
  assert.equal(readFileSync(DOCUMENT, 'utf8'), text)
})
