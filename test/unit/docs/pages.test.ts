/** What of the pages can be held without machines; test/long/pages.test.ts runs their commands. */
import assert from 'node:assert/strict'
import { readFileSync } from 'node:fs'
import { Readable } from 'node:stream'
import { test } from 'node:test'
import { CONFIG_SCHEMA, type Group, isLeaf, type Leaf, PEER_SCHEMA } from '../../../config/schema.ts'
import { swamProgram } from '../../../server/cli/program.ts'
import { release } from '../../../server/release.ts'
import { commandBlocks } from '../../lab/pages.ts'

const README = readFileSync('README.md', 'utf8')
const OPERATIONS = readFileSync('docs/operations.md', 'utf8')

test('a block of commands that says nothing of where it is run is a fault', () => {
  const marked =
    '# One\n\n<!-- run on: here; twice -->\n```sh\nls\n\npwd\n```\n<!-- not run: it is slow -->\n```sh\nsleep 9\n```\n'
  assert.deepEqual(commandBlocks(marked), [
    { heading: 'One', line: 5, place: 'here', note: 'twice', commands: ['ls', 'pwd'] },
    { heading: 'One', line: 11, place: undefined, note: 'it is slow', commands: ['sleep 9'] },
  ])
  assert.deepEqual(commandBlocks('```\n a picture\n```\n'), [])
  assert.throws(() => commandBlocks('```sh\nls\n```\n'), /says where it is run/)
  assert.throws(() => commandBlocks('<!-- run on: mars -->\n```sh\nls\n```\n'), /says where it is run/)
  assert.throws(() => commandBlocks('text\n\n    ls\n'), /indented/)
  assert.throws(() => commandBlocks('<!-- run on: here -->\n```sh\nls\n'), /does not end/)
})

test('README gets from two hosts to a migration in six commands', () => {
  const [making, joining] = commandBlocks(README).filter(({ heading }) => heading === 'Install, and migrate')
  assert.deepEqual(making?.place, 'builder')
  assert.equal(joining?.place, 'here')
  assert.equal(joining?.commands.length, 6)
  assert.match(joining?.commands[4] ?? '', /^virsh migrate --live --copy-storage-all /)
})

test('the pages name this version of the package, and every command of swam that they show exists', () => {
  const program = swamProgram(Readable.from([]), { out: () => {}, err: () => {} }).program
  let seen = 0
  for (const page of [README, OPERATIONS]) {
    const commands = commandBlocks(page).flatMap((one) => one.commands)
    assert.ok(commands.some((command) => command.includes(`swam_${release()}_amd64.deb`)))
    const inline = [...page.matchAll(/`(swam [a-z][^`]*)`/g)].map((match) => match[1]!)
    for (const command of [...commands, ...inline]) {
      const words = /^swam ([a-z].*?)(?: *#.*)?$/.exec(command)?.[1]?.split(' ')
      if (words === undefined) continue
      seen++
      let at = program
      for (const word of words) {
        const inner = at.commands.find((one) => one.name() === word)
        if (inner === undefined) break
        at = inner
      }
      assert.ok(at !== program && at.commands.length === 0, `${command}: no such command of swam`)
      const options = [...at.options, ...program.options].map(({ long }) => long)
      for (const option of words.filter((word) => word.startsWith('--')))
        assert.ok(options.includes(option), `${command}: no such option`)
    }
  }
  assert.ok(seen > 10)
})

function leaves(group: Group, prefix: string): [string, Leaf][] {
  return Object.entries(group).flatMap(([key, node]): [string, Leaf][] =>
    isLeaf(node) ? [[`${prefix}${key}`, node]] : leaves(node, `${prefix}${key}.`),
  )
}

test('tuning: every key of swam.toml with its default', () => {
  const part = OPERATIONS.slice(OPERATIONS.indexOf('\n## Tuning'), OPERATIONS.indexOf('\n## Upgrade'))
  const shown = [...part.matchAll(/^\| `([\w.]+)` \| (.*?) \| (.+) \|$/gm)].map(([, key, fallback]) => [
    key,
    fallback,
  ])
  const expected = [
    ...leaves(CONFIG_SCHEMA, '').filter(([key]) => key !== 'peers'),
    ...leaves(PEER_SCHEMA, 'peers.'),
  ]
  const text = (value: unknown): string =>
    Array.isArray(value) ? `[${value.map(text).join(', ')}]` : JSON.stringify(value)
  assert.deepEqual(
    shown,
    // The package fills in the site.
    expected.map(([key, { default: value }]) => [
      key,
      value !== null ? `\`${text(value)}\`` : key === 'site' ? "the host's domain, or its name" : 'required',
    ]),
  )
})
