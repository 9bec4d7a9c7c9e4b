/**
 * The far side of `swam peer add`, against a near side that lies, falls silent or is gone: nothing stays without keep, and
 * nothing is laid down that root would have had to ask for.
 */
import assert from 'node:assert/strict'
import { appendFile, mkdir, readdir, readFile, rm, writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import { PassThrough } from 'node:stream'
import { type TestContext, test } from 'node:test'
import { checkConfigText } from '../../../config/load.ts'
import { accept } from '../../../server/join/accept.ts'
import { Joining } from '../../../server/join/joining.ts'
import { JsonLines, lineText } from '../../../server/join/lines.ts'
import { KEY_HERE, KEY_LOGIN, KEY_THERE, type Rig, rigged, THEIRS } from './rig.ts'

interface Answer {
  readonly ok: boolean
  readonly message?: string
  readonly done?: readonly string[]
  readonly would?: readonly string[]
}

/** `options` of the session; `end` hangs up and waits. */
function session(rig: Rig, options: { nextMs?: number; configPath?: string } = {}) {
  const input = new PassThrough()
  const output = new PassThrough()
  const answers = new JsonLines(output, 'far')
  const ended = accept({
    configPath: rig.configPath,
    input,
    write: (text) => void output.write(text),
    client: '192.0.2.7',
    host: rig.host,
    nextMs: 5000,
    ...options,
  }).finally(() => output.end())
  return {
    ended,
    ask: async (request: object): Promise<Answer> => {
      input.write(lineText({ name: '192.0.2.7', facts: THEIRS, ...request }))
      return (await answers.next(10_000)) as unknown as Answer
    },
    end: async () => {
      input.end()
      await ended
    },
  }
}

async function joined(
  context: TestContext,
  step: string,
): Promise<{ rig: Rig; before: readonly string[]; far: ReturnType<typeof session> }> {
  const rig = await rigged(context, undefined, 'ssh-rsa AAAA somebody\n')
  const before = await rig.laidDown()
  const far = session(rig)
  const answer = await far.ask({ step })
  assert.equal(answer.ok, true, answer.message)
  return { rig, before, far }
}

test('look changes nothing, do lays down three things, keep leaves them', async (context) => {
  const { rig, before, far } = await joined(context, 'look')
  assert.deepEqual(await rig.laidDown(), before)
  assert.equal((await far.ask({ step: 'do' })).done?.length, 3)
  const [config, keys, key] = await rig.laidDown()
  assert.ok(config!.startsWith(before[0]!) && config!.includes(`hostKey = "${KEY_THERE}"`))
  assert.deepEqual(checkConfigText(config!, 'x'), [])
  const line = `restrict,command="/usr/lib/swam/bin/swam-peer --peer 192.0.2.7 --socket ${rig.folder}/run/peer.sock" ${KEY_LOGIN} 192.0.2.7\n`
  assert.equal(keys, `ssh-rsa AAAA somebody\n${line}`)
  assert.match(key!, /PRIVATE KEY/)
  const kept = await far.ask({ step: 'keep' })
  assert.match(kept.done?.[0] ?? '', /swamd does not run/)
  await far.end()
  assert.deepEqual(await rig.laidDown(), [config, keys, key])
})

test('without keep all is taken back: undo, the end of the connection, silence, a word that is none', async (context) => {
  const ways: readonly ((far: ReturnType<typeof session>) => Promise<unknown>)[] = [
    async (far) => {
      assert.equal((await far.ask({ step: 'undo' })).done?.length, 3)
      await far.end()
    },
    (far) => far.end(),
    async (far) => {
      assert.equal((await far.ask({ step: 'reboot' })).ok, false)
      await far.ended
    },
    async (far) => {
      assert.match((await far.ask({ step: 'do' })).message ?? '', /do came twice/)
      await far.ended
    },
  ]
  for (const way of ways) {
    const { rig, before, far } = await joined(context, 'do')
    assert.notDeepEqual(await rig.laidDown(), before)
    await way(far)
    assert.deepEqual(await rig.laidDown(), before)
  }
  const rig = await rigged(context)
  const before = await rig.laidDown()
  const silent = session(rig, { nextMs: 1500 })
  assert.equal((await silent.ask({ step: 'do' })).ok, true)
  await assert.rejects(silent.ended, /no answer within/)
  assert.deepEqual(await rig.laidDown(), [before[0], '', ''])
})

test('a host is no peer of itself, and facts and names are held to their form before anything is done', async (context) => {
  const rig = await rigged(context)
  const before = await rig.laidDown()
  const wrong: readonly [said: RegExp, request: object][] = [
    [/same host/, { facts: { ...THEIRS, hostKey: KEY_HERE } }],
    [/did not tell its public key/, { facts: { ...THEIRS, publicKey: null } }],
    [/^swam peer add: site: /, { facts: { ...THEIRS, site: '"\nstrict = true' } }],
    [/^swam peer add: name: /, { name: '../x' }],
    [
      /no name of|resolves/,
      { facts: { ...THEIRS, names: ['198.51.100.1'], addresses: ['10.9.9.9'] }, name: '198.51.100.2' },
    ],
  ]
  for (const [said, request] of wrong) {
    const far = session(rig)
    const answer = await far.ask({ step: 'do', ...request })
    assert.equal(answer.ok, false)
    assert.match(answer.message ?? '', said)
    await far.end()
    assert.deepEqual(await rig.laidDown(), before, String(said))
  }
})

test('a peer with other values is replaced only when that is asked for, and comes back with undo', async (context) => {
  const { rig, far } = await joined(context, 'do')
  await far.ask({ step: 'keep' })
  await far.end()
  const before = await rig.laidDown()
  const facts = { ...THEIRS, hostKey: KEY_LOGIN, publicKey: KEY_THERE }
  const again = session(rig)
  const refused = await again.ask({ step: 'do', facts })
  assert.match(refused.message ?? '', /peer with other values: .*another key for .*ssh.hostKey is/)
  assert.deepEqual(await rig.laidDown(), before)
  assert.equal((await again.ask({ step: 'do', facts, replace: true })).done?.length, 2)
  assert.equal(
    ((await rig.laidDown())[1] ?? '').trim().split('\n').length,
    2,
    'the old key opens nothing any more',
  )
  await again.ask({ step: 'undo' })
  assert.deepEqual(await rig.laidDown(), before)
  // Somebody wrote one more address of that host into the config: that is no other value.
  await writeFile(rig.configPath, before[0]!.replace('s = ["192.0.2.7"', 's = ["192.0.2.7", "10.0.0.7"'))
  assert.deepEqual((await again.ask({ step: 'look' })).would, [])
  await writeFile(rig.configPath, before[0]!.replace('s = ["192.0.2.7"', 's = ["192.0.2.7", "10.9.9.9"'))
  assert.equal((await again.ask({ step: 'look' })).would?.length, 1, 'an address that is not its own')
  await again.end()
})

test('an address of another peer is not taken from it', async (context) => {
  const table = `\n[[peers]]\nname = "old"\naddresses = ["192.0.2.7"]\nssh = { hostKey = "${KEY_THERE}" }\n`
  const rig = await rigged(context, `site = "ams"\n${table}`)
  const before = await rig.laidDown()
  const far = session(rig)
  assert.match((await far.ask({ step: 'do' })).message ?? '', /192\.0\.2\.7 is an address of peer old/)
  await far.end()
  assert.deepEqual(await rig.laidDown(), before)
})

test('peers that are no tables: the new text is looked at before anything is done', async (context) => {
  const rig = await rigged(context, 'site = "ams"\npeers = []\n')
  const before = await rig.laidDown()
  const far = session(rig)
  assert.match((await far.ask({ step: 'do' })).message ?? '', /write it by hand/)
  await far.end()
  assert.deepEqual(await rig.laidDown(), before)
})

test('what is said of a path is one line without control characters', async (context) => {
  const rig = await rigged(context)
  const folder = join(rig.folder, ...Array.from({ length: 3 }, () => `${'x'.repeat(220)}\u009b\u202eb`))
  await mkdir(folder, { recursive: true })
  const configPath = join(folder, 'swam.toml')
  await writeFile(configPath, await readFile(rig.configPath))
  const far = session(rig, { configPath })
  const { would = [] } = await far.ask({ step: 'look' })
  assert.equal(would.length, 3)
  for (const line of would) assert.ok(!/\p{C}/u.test(line) && line.length <= 600, line)
  await far.end()
})

async function plan(rig: Rig): Promise<Joining> {
  const { configPath, host } = rig
  return await Joining.plan({ configPath, name: 'fra1', theirs: THEIRS, addresses: ['192.0.2.7'], host })
}

test('what fails in the middle is undone, last things first, and what somebody else did meanwhile stays', async (context) => {
  const rig = await rigged(context, undefined, 'ssh-rsa AAAA somebody\n')
  const before = await rig.laidDown()
  const changed = await plan(rig)
  await appendFile(rig.configPath, '# meanwhile\n')
  await assert.rejects(changed.apply(), /swam.toml was changed by somebody else meanwhile/)
  assert.deepEqual(await rig.laidDown(), [`${before[0]}# meanwhile\n`, before[1], ''])

  const joining = await plan(rig)
  await joining.apply()
  await appendFile(rig.keysPath, 'ssh-rsa BBBB another\n')
  const left = await joining.undo()
  assert.deepEqual(
    left.map((line) => line.split(':')[0]),
    ['undone', 'not undone', 'undone'],
  )
  for (const [at, said] of [
    /peer fra1 in .*swam\.toml/,
    /authorized_keys was changed by somebody else/,
    /the key/,
  ].entries()) {
    assert.match(left[at]!, said, 'last things first')
  }
  const [config, keys, key] = await rig.laidDown()
  assert.equal(config, `${before[0]}# meanwhile\n`)
  assert.match(keys!, /^ssh-rsa AAAA somebody\nrestrict,.*\nssh-rsa BBBB another\n$/)
  assert.equal(key, '')
  assert.deepEqual(await joining.undo(), [], 'once')

  // The login cannot write its file: the key that was just made is not left behind.
  await rm(join(rig.folder, 'home/.ssh'), { recursive: true })
  await writeFile(join(rig.folder, 'home/.ssh'), '')
  await assert.rejects((await plan(rig)).apply(), /\.ssh/)
  assert.deepEqual((await readdir(rig.folder)).sort(), ['home', 'swam.toml'])
})
