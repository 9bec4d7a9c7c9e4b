/**
 * `swam peer add`, `remove`, `test` and `accept` as commands, with an `ssh` that says what a far side may say: what is refused
 * changes nothing here, what fails on the way is taken back, and nothing of the far side's reaches the terminal as it is.
 */
import assert from 'node:assert/strict'
import { appendFile, chmod, mkdir, readFile, rm, writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import { type TestContext, test } from 'node:test'
import { doctorCommand } from '../../../server/cli/doctor.ts'
import { peerAcceptCommand, peerRemoveCommand, peerTestCommand } from '../../../server/cli/peer.ts'
import { type PeerAddOptions, peerAddCommand } from '../../../server/cli/peer-add.ts'
import { withPeer } from '../../../server/join/config-text.ts'
import { lineText } from '../../../server/join/lines.ts'
import { KEY_HERE, KEY_LOGIN, KEY_THERE, type Rig, rigged, THEIRS } from '../join/rig.ts'

/** Answers are files; what it is called with and what it hears goes into others. */
const SSH = `#!/bin/sh
d=$(dirname "$0")
printf '%s\\n' "$*" >>"$d/calls"
if [ "$1" = -G ]; then printf 'user root\\nhostname 192.0.2.7\\n'; exit; fi
if [ -e "$d/said" ]; then cat "$d/said" >&2; exit "$(cat "$d/status")"; fi
n=0
while IFS= read -r line; do
  n=$((n + 1))
  printf '%s\\n' "$line" >>"$d/heard"
  cat "$d/answer-$n" || exit 0
done
`

interface Far extends Rig {
  readonly bin: string
  /** What the commands print. */
  readonly printed: () => string
  add(options?: PeerAddOptions, name?: string, target?: string): Promise<void>
  remove(name: string): Promise<void>
  calls(): Promise<string>
  steps(): Promise<unknown[]>
}

function asUser(context: TestContext, uid: number): void {
  context.mock.method(process as { getuid: () => number }, 'getuid', () => uid)
}

const LOOK = {
  ok: true,
  facts: THEIRS,
  addresses: ['192.0.2.1'],
  notes: [],
  would: ['add the peer'],
  differs: [],
}
const DONE = { ok: true, facts: THEIRS, done: ['added the peer'] }

async function far(
  context: TestContext,
  answers: readonly object[],
  config?: string,
  keys?: string,
): Promise<Far> {
  const rig = await rigged(context, config, keys)
  const bin = join(rig.folder, 'bin')
  await mkdir(bin)
  await writeFile(join(bin, 'ssh'), SSH)
  await chmod(join(bin, 'ssh'), 0o755)
  for (const [at, answer] of answers.entries())
    await writeFile(join(bin, `answer-${at + 1}`), lineText(answer))
  const path = process.env['PATH']
  process.env['PATH'] = `${bin}:${path}`
  context.after(() => {
    process.env['PATH'] = path
  })
  asUser(context, 0)
  let printed = ''
  const print = (text: string): void => {
    printed += text
  }
  const output = { out: print, err: print }
  const read = async (name: string): Promise<string> =>
    await readFile(join(bin, name), 'utf8').catch(() => '')
  return {
    ...rig,
    bin,
    printed: () => printed,
    add: async (options = {}, name = 'fra1', target = 'root@192.0.2.7') =>
      await peerAddCommand(
        name,
        target,
        { config: rig.configPath, nameHere: 'ams1', ...options },
        output,
        rig.host,
      ),
    remove: async (name) => await peerRemoveCommand(name, { config: rig.configPath }, output, rig.host),
    calls: () => read('calls'),
    steps: async () =>
      (await read('heard'))
        .split('\n')
        .filter((line) => line !== '')
        .map((line) => (JSON.parse(line) as { step: unknown }).step),
  }
}

test('add: words that are no name, host or port start nothing', async (context) => {
  const host = await far(context, [LOOK])
  const before = await host.laidDown()
  for (const [options, name, target] of [
    [{}, '../x', 'root@h'],
    [{ nameHere: 'a b' }, 'fra1', 'root@h'],
    [{}, 'fra1', '-oProxyCommand=id'],
    [{}, 'fra1', 'root@h;id'],
    [{ port: '0' }, 'fra1', 'root@h'],
    [{ port: '22 -oX' }, 'fra1', 'root@h'],
  ] as const) {
    await assert.rejects(host.add(options, name, target), { code: 'SWAM_USAGE' })
  }
  assert.equal(await host.calls(), '')
  assert.deepEqual(await host.laidDown(), before)
})

test('add: ssh gets the target behind --, and a command of our words only', async (context) => {
  const host = await far(context, [LOOK])
  await host.add({ dryRun: true, port: '2222' })
  const called = '-T -o BatchMode=no -p 2222 -- root@192.0.2.7 /usr/bin/swam peer accept'
  assert.equal(await host.calls(), `-G -p 2222 -- root@192.0.2.7\n${called}\n`)
})

test('add: --dry-run changes nothing, here or there', async (context) => {
  const host = await far(context, [LOOK])
  const before = await host.laidDown()
  await host.add({ dryRun: true })
  assert.deepEqual(await host.laidDown(), before)
  assert.deepEqual(await host.steps(), ['look'])
  assert.match(
    host.printed(),
    /here: would make the key .*\nhere: would add .*\nhere: would add peer fra1 .*\nat root@192.0.2.7: would add the peer\n/,
  )
})

test('add: who says something else than facts, or is this host, or has other values, changes nothing', async (context) => {
  const cases: readonly [said: RegExp, look: object][] = [
    [/this host: a host is no peer of itself/, { ...LOOK, facts: { ...THEIRS, hostKey: KEY_HERE } }],
    [/^ProtocolError: root@192\.0\.2\.7: site: /, { ...LOOK, facts: { ...THEIRS, site: '"\n[[peers]]' } }],
    [
      /^ProtocolError: root@192\.0\.2\.7: hostKey: /,
      { ...LOOK, facts: { ...THEIRS, hostKey: `${KEY_THERE}\n${KEY_THERE}` } },
    ],
    [/other values .*at root@192.0.2.7 it is another/, { ...LOOK, differs: ['it is another'] }],
    [/notes/, { ...LOOK, notes: ['x'.repeat(601)] }],
    [/would/, { ...LOOK, would: 'x' }],
    [/no without a reason/, { ok: 'yes' }],
    [/said no/, { ok: false, message: 'said no' }],
    [/resolves to one of its addresses/, { ...LOOK, facts: { ...THEIRS, addresses: ['10.0.0.7'] } }],
  ]
  for (const [said, look] of cases) {
    const host = await far(context, [look, DONE, { ok: true }])
    const before = await host.laidDown()
    await assert.rejects(host.add(), said)
    assert.deepEqual(await host.steps(), ['look'], String(said))
    assert.deepEqual(await host.laidDown(), before)
    context.mock.restoreAll()
  }
})

test('add: a peer of that name with other values here is replaced only with --replace', async (context) => {
  const ssh = { user: 'swam', port: 22, key: '/k', hostKey: KEY_LOGIN }
  const there = withPeer('', { name: 'fra1', addresses: ['192.0.2.9'], site: 'fra', ssh })
  const host = await far(context, [LOOK, { ok: false, message: 'stop' }], `site = "ams"\n${there}`)
  const before = await host.laidDown()
  await assert.rejects(host.add(), /--replace replaces them\): here .*addresses is 192\.0\.2\.9/)
  assert.deepEqual(await host.steps(), ['look'])
  await assert.rejects(host.add({ replace: true }), /stop/)
  assert.deepEqual((await host.steps()).slice(1), ['look', 'do'])
  assert.deepEqual(await host.laidDown(), before)
})

test('add: what fails after the far side did its part is taken back here, the new key too', async (context) => {
  const cases: readonly [said: RegExp, answers: object[], steps?: number][] = [
    [/stop/, [LOOK, { ok: false, message: 'stop' }]],
    [/two host keys/, [LOOK, { ...DONE, facts: { ...THEIRS, hostKey: KEY_LOGIN } }]],
    [/^RefusedError: the far side: site: /, [LOOK, { ...DONE, facts: { ...THEIRS, site: 'a b' } }]],
    [/done/, [LOOK, { ...DONE, done: ['x'.repeat(601)] }]],
    [/stop/, [LOOK, DONE, { ok: false, message: 'stop' }]],
    [/done/, [LOOK, DONE, { ok: true, done: [7] }]],
    [/ended with 0/, [LOOK, DONE], 3],
  ]
  for (const [said, answers, steps = answers.length] of cases) {
    const host = await far(context, answers, undefined, 'ssh-rsa AAAA somebody\n')
    const before = await host.laidDown()
    await assert.rejects(host.add(), said)
    assert.deepEqual(await host.laidDown(), before, String(said))
    assert.equal((await host.steps()).length, steps)
    context.mock.restoreAll()
  }
})

test('add: what a far side says is printed without its control characters, and not without end', async (context) => {
  const odd = 'a\u001b[2J\r\u009b\u202eb'
  const host = await far(context, [{ ...LOOK, notes: [odd], would: [odd] }])
  await host.add({ dryRun: true })
  assert.doesNotMatch(host.printed(), /[^\P{C}\n]/u)
  await writeFile(join(host.bin, 'said'), `${'x'.repeat(1000)}${odd}`)
  await writeFile(join(host.bin, 'status'), '255')
  const error = (await host.add().catch((caught: unknown) => caught)) as Error
  assert.match(error.message, /^ssh root@192\.0\.2\.7: x+a/)
  assert.ok(error.message.length < 1000 && !/\p{C}/u.test(error.message))
  await rm(join(host.bin, 'said'))
  await writeFile(join(host.bin, 'answer-1'), lineText({ ok: false, message: 'y'.repeat(10_000) }))
  assert.ok(((await host.add().catch((caught: unknown) => caught)) as Error).message.length < 2100)
})

const SSH_PEER = { user: 'swam', port: 22, key: '/k', hostKey: KEY_THERE }
const TABLE = withPeer('', { name: 'fra1', addresses: ['192.0.2.7'], site: 'fra', ssh: SSH_PEER })
const LINE = `restrict,command="/usr/lib/swam/bin/swam-peer --peer fra1 --socket /run/swam/peer.sock" ${KEY_LOGIN} fra1\n`

test('remove: the key and the table, and nothing of others', async (context) => {
  const others = 'ssh-rsa AAAA somebody\n'
  const host = await far(context, [], `site = "ams"\n\n${TABLE}\n# kept\n`, `${others}${LINE}`)
  const [config] = await host.laidDown()
  await assert.rejects(host.remove('par1'), { answerCode: 'SWAM_NOT_FOUND' })
  await host.remove('fra1')
  assert.deepEqual(await host.laidDown(), [config!.replace(`\n${TABLE}`, ''), others, ''])
  assert.equal(await host.calls(), '')
})

test('remove: the key goes first: what then fails leaves the far side shut out', async (context) => {
  const inline = `site = "ams"\npeers = [{ name = "fra1", addresses = ["192.0.2.7"], ssh = { hostKey = "${KEY_THERE}" } }]\n`
  const host = await far(context, [], inline, LINE)
  const [config] = await host.laidDown()
  await assert.rejects(host.remove('fra1'), /change it by hand/)
  assert.deepEqual(await host.laidDown(), [config, '', ''])
})

test('remove: a config that somebody else changes meanwhile stays as that one wrote it', async (context) => {
  const host = await far(context, [], `site = "ams"\n\n${TABLE}`, LINE)
  const [config] = await host.laidDown()
  const login = host.host.login
  // Asked for after the config was read.
  const late = {
    ...host.host,
    login: async () => {
      await appendFile(host.configPath, '# meanwhile\n')
      return await login()
    },
  }
  const output = { out: () => undefined, err: () => undefined }
  await assert.rejects(
    peerRemoveCommand('fra1', { config: host.configPath }, output, late),
    /swam.toml was changed by somebody else/,
  )
  assert.equal((await host.laidDown())[0], `${config}# meanwhile\n`)
})

test('what changes this host, and what asks over SSH, is for root', async (context) => {
  const host = await far(context, [LOOK])
  context.mock.restoreAll()
  asUser(context, 1000)
  const output = { out: () => undefined, err: () => undefined }
  const options = { config: host.configPath }
  const notAllowed = { message: /^not allowed: / }
  await assert.rejects(host.add(), notAllowed)
  await assert.rejects(host.remove('fra1'), notAllowed)
  await assert.rejects(peerAcceptCommand(process.stdin, options, output), notAllowed)
  await assert.rejects(doctorCommand(options, output), notAllowed)
  assert.equal(await host.calls(), '')
  // A test is what the daemon does; its socket is root's.
  await assert.rejects(peerTestCommand('fra1', options, output), /hook\.sock/)
})
