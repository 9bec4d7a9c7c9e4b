/** The completion as a real bash runs it offers what commander knows: every visible command and option, at every place. */
import assert from 'node:assert/strict'
import { spawnSync } from 'node:child_process'
import { existsSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { Readable } from 'node:stream'
import { after, test } from 'node:test'
import type { Command } from 'commander'
import { bashCompletion } from '../../../server/cli/completion.ts'
import { swamProgram } from '../../../server/cli/program.ts'

const directory = mkdtempSync(join(tmpdir(), 'swam-completion-'))
after(() => rmSync(directory, { recursive: true, force: true }))
writeFileSync(join(directory, 'swam.bash'), bashCompletion())
writeFileSync(join(directory, 'file.toml'), '')
writeFileSync(join(directory, 'peers.toml'), 'site = "a"\n[[peers]]\nname = "fra1"\nsite = "fra"\n')

/** What bash offers for the last of these words. */
function offered(...words: readonly string[]): string[] {
  const script =
    // biome-ignore lint/suspicious/noTemplateCurlyInString: it is bash's
    'compopt() { :; }; virsh() { echo vm1; echo "\\$(touch caught)"; echo web; }; sed() { command sed -n "$2" peers.toml; }; . ./swam.bash; COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); _swam; printf "%s\\n" "${COMPREPLY[@]}"'
  const done = spawnSync('bash', ['--norc', '-c', script, 'bash', 'swam', ...words], { cwd: directory })
  assert.equal(done.stderr.toString(), '')
  return done.stdout
    .toString()
    .split('\n')
    .filter((line) => line !== '')
    .sort()
}

function root(): Command {
  const none = (): void => {}
  return swamProgram(Readable.from([]), { out: none, err: none }).program
}

/** Read from commander's own help, not from what the generator reads. */
function helpOf(command: Command, heading: string): string[] {
  const text = command.helpInformation()
  const part = new RegExp(`^${heading}:\\n((?: .*\\n)+)`, 'm').exec(text)?.[1] ?? ''
  return [...part.matchAll(/^ {2}(?:-\w, )?([-\w]+)/gm)].map((match) => match[1]!).sort()
}

test('every command of each level, and no hidden one', () => {
  const program = root()
  assert.deepEqual(offered(''), helpOf(program, 'Commands'))
  assert.ok(offered('').includes('status') && !offered('').includes('hook'))
  for (const command of program.commands.filter(({ commands }) => commands.length > 0)) {
    assert.deepEqual(offered(command.name(), ''), helpOf(command, 'Commands'), command.name())
  }
  assert.deepEqual(offered('st'), ['status'])
})

test('options of the program, also after a command', () => {
  const own = helpOf(root(), 'Options').filter((name) => name !== '--help')
  assert.ok(own.includes('--config'))
  assert.deepEqual(offered('--'), own)
  assert.deepEqual(offered('status', '--j'), ['--json'])
})

test('files where a file is expected, and only there', () => {
  const files = ['file.toml', 'peers.toml', 'swam.bash']
  assert.deepEqual(offered('--config', ''), files)
  assert.deepEqual(offered('config', 'check', 'fi'), ['file.toml'])
  assert.deepEqual(offered('--config', 'x', 'config', 'check', ''), files)
  assert.deepEqual(offered('peer', 'list', ''), [])
})

test('guests that libvirt knows, peers of the config', () => {
  assert.deepEqual(offered('history', ''), ['vm1', 'web'])
  assert.deepEqual(offered('status', 'w'), ['web'])
  assert.ok(!existsSync(join(directory, 'caught')), "a guest's name was run")
  assert.deepEqual(offered('peer', 'test', ''), ['fra1'])
  assert.deepEqual(offered('peer', 'remove', 'x'), [])
  assert.deepEqual(offered('estimate', ''), ['vm1', 'web'])
  assert.deepEqual(offered('estimate', 'web', ''), ['fra1'])
  assert.deepEqual(offered('estimate', 'web', 'fra1', ''), [])
  assert.deepEqual(offered('estimate', 'web', '--j'), ['--json'])
})
