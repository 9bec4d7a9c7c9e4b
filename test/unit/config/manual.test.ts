/** swam.toml(5) is made from the schema: every key is in it, with what it may be, and its text is what man shows. */
import assert from 'node:assert/strict'
import { spawnSync } from 'node:child_process'
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { after, test } from 'node:test'
import { configManual } from '../../../config/manual.ts'
import { CONFIG_SCHEMA, type Group, isLeaf, type Leaf, PEER_SCHEMA } from '../../../config/schema.ts'

function leaves(group: Group, prefix = ''): [string, Leaf][] {
  return Object.entries(group).flatMap(([key, node]): [string, Leaf][] =>
    isLeaf(node) ? [[`${prefix}${key}`, node]] : leaves(node, `${prefix}${key}.`),
  )
}

const ALL = [...leaves(CONFIG_SCHEMA).filter(([key]) => key !== 'peers'), ...leaves(PEER_SCHEMA)]

test('every key is there once, required ones as such, and no other', () => {
  const text = configManual()
  const shown = [...text.matchAll(/^`(.+)`\n\n: (.*)$/gm)].map(([, key, words]) => [
    key,
    / Required\.$/.test(words!),
  ])
  assert.ok(ALL.length > 20)
  assert.deepEqual(
    shown,
    ALL.map(([key, node]) => [key, node.default === null]),
  )
})

test('man shows the texts as the schema has them', () => {
  const directory = mkdtempSync(join(tmpdir(), 'swam-manual-'))
  after(() => rmSync(directory, { recursive: true, force: true }))
  writeFileSync(join(directory, 'swam.toml.md'), configManual())
  const page = spawnSync('debian/man', ['swam.toml', '5', join(directory, 'swam.toml.md')])
  assert.equal(page.status, 0, page.stderr.toString())
  const shown = spawnSync('man', ['-l', '-'], {
    input: page.stdout,
    env: { PATH: process.env['PATH'], LC_ALL: 'C.UTF-8', MANWIDTH: '5000' },
  })
  assert.equal(shown.status, 0, shown.stderr.toString())
  const text = shown.stdout.toString().replaceAll(/\s+/g, ' ')
  assert.match(text, /swam\.toml - the configuration of swamd/)
  for (const [key, { doc, expected }] of ALL) {
    assert.ok(text.includes(` ${key} ${doc} It is ${expected}.`), `${key}: ${doc}`)
  }
})
