/**
 * The hook script under dash, with its paths replaced by a folder of the test: which events reach `swam`, and that no
 * behaviour of `swam` (missing, failing, hanging, talking) delays or fails libvirt, except a refusal.
 */
import assert from 'node:assert/strict'
import { spawn } from 'node:child_process'
import { mkdir, mkdtemp, readFile, rm, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterEach, beforeEach, test } from 'node:test'

const XML = '<domain><name>vm</name></domain>'

let directory: string
let script: string

beforeEach(async () => {
  directory = await mkdtemp(join(tmpdir(), 'swam-hook-'))
  await mkdir(join(directory, 'incoming'))
  const text = await readFile(new URL('../../../hooks/50-swam', import.meta.url), 'utf8')
  script = join(directory, '50-swam')
  const replaced = text
    .replace('/usr/bin/swam', join(directory, 'swam'))
    .replace('/etc/swam/swam.toml', join(directory, 'swam.toml'))
    .replace('/run/swam/incoming', join(directory, 'incoming'))
  await writeFile(script, replaced, { mode: 0o755 })
})

afterEach(() => rm(directory, { recursive: true }))

/** A `swam` that notes its arguments and input, then does what `rest` says. */
async function fakeSwam(rest: string): Promise<void> {
  const note = `for a in "$@"; do printf '[%s]' "$a"; done > ${directory}/called; cat > ${directory}/xml\n`
  await writeFile(join(directory, 'swam'), `#!/bin/sh\n${note}${rest}\n`, { mode: 0o755 })
}

function called(): Promise<string | undefined> {
  return readFile(join(directory, 'called'), 'utf8').catch(() => undefined)
}

interface Outcome {
  readonly code: number | null
  readonly stdout: string
  readonly stderr: string
}

function run(argv: readonly string[], env: NodeJS.ProcessEnv = process.env): Promise<Outcome> {
  return new Promise((resolve, reject) => {
    const child = spawn('dash', [script, ...argv], { env })
    let stdout = ''
    let stderr = ''
    child.stdout.on('data', (piece) => {
      stdout += piece
    })
    child.stderr.on('data', (piece) => {
      stderr += piece
    })
    child.stdin.on('error', () => {})
    child.stdin.end(XML)
    child.on('error', reject)
    child.on('close', (code) => resolve({ code, stdout, stderr }))
  })
}

for (const { name, argv } of [
  { name: 'no arguments', argv: [] },
  { name: 'prepare', argv: ['vm', 'prepare', 'begin', '-'] },
  { name: 'start', argv: ['vm', 'start', 'begin', '-'] },
  { name: 'started of a guest that is not incoming', argv: ['vm', 'started', 'begin', '-'] },
  { name: 'stopped of a guest that is not incoming', argv: ['vm', 'stopped', 'end', '-'] },
  { name: 'release of a guest that is not incoming', argv: ['vm', 'release', 'end', 'migrated'] },
  { name: 'reconnect', argv: ['vm', 'reconnect', 'begin', '-'] },
  { name: 'attach', argv: ['vm', 'attach', 'begin', '-'] },
  { name: 'restore', argv: ['vm', 'restore', 'begin', '-'] },
  { name: 'a name that climbs', argv: ['../incoming', 'started', 'begin', '-'] },
  { name: 'a name with a slash', argv: ['a/b', 'migrate', 'begin', '-'] },
  { name: 'a name with a leading dot', argv: ['.', 'started', 'begin', '-'] },
  { name: 'an empty name', argv: ['', 'started', 'begin', '-'] },
]) {
  test(`not ours, left at once: ${name}`, async () => {
    await fakeSwam('exit 10')
    assert.deepEqual(await run(argv), { code: 0, stdout: '', stderr: '' })
    assert.equal(await called(), undefined)
  })
}

for (const guest of ['vm', '-rf', 'a b', '$(reboot)', '*', "it's"]) {
  test(`the announcement of ${guest} reaches swam with its XML, and stdout stays empty`, async () => {
    await fakeSwam('echo "<domain/>"; echo "said on stderr" >&2; exit 0')
    const outcome = await run([guest, 'migrate', 'begin', '-'])
    assert.deepEqual(outcome, { code: 0, stdout: '', stderr: 'said on stderr\n' })
    assert.equal(await called(), `[--config][${directory}/swam.toml][hook][--][${guest}][migrate][begin][-]`)
    assert.equal(await readFile(join(directory, 'xml'), 'utf8'), XML)
  })

  test(`later events of ${guest} reach swam when it is marked as incoming`, async () => {
    await fakeSwam('exit 0')
    await writeFile(join(directory, 'incoming', guest), '')
    for (const [op, sub, extra] of [
      ['started', 'begin', '-'],
      ['stopped', 'end', '-'],
      ['release', 'end', 'migrated'],
    ] as const) {
      assert.equal((await run([guest, op, sub, extra])).code, 0)
      const words = `[--config][${directory}/swam.toml][hook][--][${guest}][${op}][${sub}][${extra}]`
      assert.equal(await called(), words)
    }
  })
}

for (const { name, rest, code } of [
  { name: 'fails', rest: 'exit 1', code: 0 },
  { name: 'uses a wrong exit code', rest: 'exit 124', code: 0 },
  { name: 'dies', rest: 'kill -9 $$', code: 0 },
  { name: 'refuses', rest: 'echo "swam: no" >&2; exit 10', code: 10 },
]) {
  test(`a swam that ${name}: ${code}`, async () => {
    await fakeSwam(rest)
    const outcome = await run(['vm', 'migrate', 'begin', '-'])
    assert.equal(outcome.code, code)
    assert.equal(outcome.stdout, '')
    if (code === 10) assert.equal(outcome.stderr, 'swam: no\n')
  })
}

test('a swam that is not there', async () => {
  assert.deepEqual(await run(['vm', 'migrate', 'begin', '-']), { code: 0, stdout: '', stderr: '' })
})

test('a swam that hangs and ignores SIGTERM is killed at the deadline', async () => {
  await writeFile(join(directory, 'swam.toml'), 'hookDeadlineMs = 1000\n')
  await fakeSwam("trap '' TERM; while :; do sleep 0.2; done")
  assert.equal((await run(['vm', 'migrate', 'begin', '-'])).code, 0)
})

for (const { name, toml, seconds } of [
  { name: 'no config', toml: undefined, seconds: '22' },
  { name: 'a config that does not say', toml: 'strict = true\n', seconds: '22' },
  { name: 'a config that says', toml: 'site = "a"\n  hookDeadlineMs=45000 # long\n', seconds: '47' },
  { name: 'TOML with underscores', toml: 'hookDeadlineMs = 60_000\n', seconds: '62' },
  { name: 'a comment', toml: '# hookDeadlineMs = 60000\n', seconds: '22' },
  { name: 'text', toml: 'hookDeadlineMs = "$(reboot)"\n', seconds: '22' },
  { name: 'a key given twice', toml: 'hookDeadlineMs = 5000\nhookDeadlineMs = 6000\n', seconds: '7' },
]) {
  test(`the script's own deadline: ${name}`, async () => {
    if (toml !== undefined) await writeFile(join(directory, 'swam.toml'), toml)
    await fakeSwam('exit 0')
    await mkdir(join(directory, 'bin'))
    const fakeTimeout = `#!/bin/sh\necho "$@" > ${directory}/timeout-called\n`
    await writeFile(join(directory, 'bin', 'timeout'), fakeTimeout, { mode: 0o755 })
    const env = { ...process.env, PATH: `${directory}/bin:${process.env['PATH']}` }
    await writeFile(join(directory, 'incoming', 'vm'), '')
    for (const [op, sub, deadline] of [
      ['migrate', 'begin', seconds],
      ['started', 'begin', seconds],
      ['stopped', 'end', '8'],
      ['release', 'end', '8'],
    ] as const) {
      assert.equal((await run(['vm', op, sub, '-'], env)).code, 0)
      const words = (await readFile(join(directory, 'timeout-called'), 'utf8')).split(' ')
      assert.deepEqual(words.slice(0, 3), ['-k', '1', deadline], op)
    }
  })
}
