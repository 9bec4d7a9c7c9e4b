/** Running a program: its output, and each way in which it can fail. */
import assert from 'node:assert/strict'
import { after, test } from 'node:test'
import { LostError, RefusedError, TimeoutError } from '../../../lib/core/errors.ts'
import { COMMAND_STDERR_BYTES_MAX } from '../../../lib/core/limits.ts'
import { CommandError, type RunCommand, runCommand } from '../../../lib/host/command.ts'
import { CommandThread } from '../../../lib/host/command-thread.ts'
import { parseJobInfo } from '../../../lib/host/libvirt.ts'
import { parseListing, Redirect } from '../../../lib/host/redirect.ts'

const limits = { deadlineMs: 10_000, outputBytesMax: 1000 }

/** The contract, here and on a thread of its own. */
function contract(where: string, run: RunCommand): void {
  test(`${where}: output, input, exit status, signal`, async () => {
    assert.equal(await run(['cat'], { ...limits, input: 'hello' }), 'hello')
    assert.equal(await run(['true'], { ...limits, input: 'x'.repeat(1_000_000) }), '')
    await assert.rejects(run(['sh', '-c', 'echo bad >&2; exit 3'], limits), (error) => {
      assert.ok(error instanceof CommandError)
      assert.equal(error.exitCode, 3)
      assert.match(error.message, /ended with 3: bad/)
      return true
    })
    await assert.rejects(run(['sh', '-c', 'kill -9 $$'], limits), /was killed: no message/)
  })

  test(`${where}: of what a program says without end on standard error the first words are kept`, async () => {
    const flood = `head -c ${20 * COMMAND_STDERR_BYTES_MAX} /dev/zero | tr '\\0' x >&2; exit 3`
    await assert.rejects(run(['sh', '-c', flood], limits), (error) => {
      assert.ok(error instanceof CommandError)
      assert.equal(error.stderr, 'x'.repeat(COMMAND_STDERR_BYTES_MAX))
      return true
    })
  })

  test(`${where}: a program that is not there, one that hangs, one that floods, one that is not wanted`, async () => {
    await assert.rejects(run(['/nonexistent/program'], limits), LostError)
    await assert.rejects(run(['sleep', '60'], { ...limits, deadlineMs: 50 }), TimeoutError)
    // A grandchild that keeps the pipes does not keep us.
    await assert.rejects(run(['sh', '-c', 'sleep 5 & wait'], { ...limits, deadlineMs: 50 }), TimeoutError)
    await assert.rejects(run(['yes'], limits), RefusedError)
    await assert.rejects(run(['sleep', '60'], { ...limits, signal: AbortSignal.timeout(50) }), LostError)
    await assert.rejects(run(['sleep', '60'], { ...limits, signal: AbortSignal.abort() }), LostError)
  })
}

const commands = new CommandThread()
after(() => commands.close())
contract('in place', runCommand)
contract('on a thread', commands.run)

test('other exit codes, and the environment of the caller where it may ask its user', async () => {
  const codes = { ...limits, exitCodes: [0, 1] }
  assert.equal(await runCommand(['sh', '-c', 'echo all; exit 1'], codes), 'all\n')
  await assert.rejects(runCommand(['sh', '-c', 'exit 2'], codes), /ended with 2/)
  await assert.rejects(runCommand(['sh', '-c', 'kill -9 $$'], codes), /was killed/)
  process.env['SWAM_TEST_SEEN'] = 'yes'
  const show = ['sh', '-c', 'echo "$SWAM_TEST_SEEN"']
  assert.deepEqual(
    [await runCommand(show, limits), await runCommand(show, { ...limits, interactive: true })],
    ['\n', 'yes\n'],
  )
})

test('on a thread: a spawn that takes long does not hold up the event loop', async () => {
  await commands.run(['true'], limits)
  const all = Promise.all(Array.from({ length: 60 }, () => commands.run(['true'], limits)))
  const before = process.threadCpuUsage()
  await all
  const { user, system } = process.threadCpuUsage(before)
  // In place each costs a millisecond and more of this thread.
  assert.ok(user + system < 60_000, `${(user + system) / 1000} ms of this thread for 60 programs`)
})

test('on a thread: eight of a program at once, another one is not held up, too many are refused', async () => {
  const abort = new AbortController()
  const signal = abort.signal
  const sleepers = Array.from({ length: 264 }, () => commands.run(['sleep', '60'], { ...limits, signal }))
  const outcomes = Promise.allSettled(sleepers)
  assert.equal(commands.running, 8)
  const another = { ...limits, signal: AbortSignal.timeout(2000) }
  await assert.rejects(commands.run(['sleep', '60'], another), /256 programs wait/)
  assert.equal(await commands.run(['echo', 'there'], limits), 'there\n')
  abort.abort()
  for (const outcome of await outcomes) {
    assert.ok(outcome.status === 'rejected' && outcome.reason instanceof LostError)
  }
  assert.equal(commands.running, 0)
})

test('on a thread: an end rejects what runs and what comes', async () => {
  const ending = new CommandThread()
  const sleeper = ending.run(['sleep', '1'], limits)
  sleeper.catch(() => undefined)
  await ending.close()
  await assert.rejects(sleeper, LostError)
  await assert.rejects(ending.run(['true'], limits), LostError)
})

test('domjobinfo as virsh prints it', () => {
  const job = parseJobInfo(`Job type:         Unbounded
Operation:        Outgoing migration
Time elapsed:     2114         ms
Data processed:   102.438 MiB
Memory bandwidth: 11.250 MiB/s
Dirty rate:       0            pages/s
Iteration:        2
Page size:        4096         bytes
Nonsense
`)
  assert.equal(job.type, 'Unbounded')
  assert.equal(job.operation, 'Outgoing migration')
  assert.deepEqual(
    [...job.figures],
    [
      ['Time elapsed', 2114],
      ['Data processed', 107414028],
      ['Memory bandwidth', 11796480],
      ['Iteration', 2],
    ],
  )
})

test('the listing of nft, with and without elements', () => {
  const listing = parseListing(
    '{"nftables":[{"metainfo":{}},{"table":{}},{"map":{"name":"to4","elem":[[{"elem":{"val":{"concat":["10.9.0.2",49153]},"timeout":8,"expires":6}},{"concat":["127.77.0.1",29153]}]]}},{"map":{"name":"to6"}},{"chain":{}},{"rule":{}},{"rule":{}}]}',
  )
  assert.deepEqual(listing, { maps: 2, chains: 1, rules: 2, elements: new Map([['10.9.0.2 49153', 29153]]) })
  assert.throws(() => parseListing('{}'), /expected/)
})

test('a redirect that would catch its own daemon, or takes hostile values, is refused before nft runs', async () => {
  assert.throws(() => new Redirect({ uids: [0], ownUid: 0 }), /run it as a user of its own/)
  assert.throws(() => new Redirect({ uids: [0], ownUid: 1, table: 'x; flush ruleset' }), /table name/)
  assert.throws(() => new Redirect({ uids: [-1], ownUid: 1 }), /uid/)
  const calls: string[] = []
  const redirect = new Redirect({
    uids: [0, 64055],
    ownUid: 999,
    run: async (_argv, options) => {
      calls.push(options.input ?? '')
      return ''
    },
  })
  await assert.rejects(redirect.arm([]), /not started/)
  await redirect.start()
  for (const entry of [
    { address: '10.0.0.1 } ; flush ruleset', port: 1, listenPort: 1 },
    { address: 'fe80::1%eth0', port: 1, listenPort: 1 },
    { address: '10.0.0.1', port: 0, listenPort: 1 },
    { address: '10.0.0.1', port: 1, listenPort: 1.5 },
  ]) {
    await assert.rejects(redirect.arm([entry]), RefusedError)
  }
  assert.equal(calls.length, 1)
  assert.match(calls[0]!, /meta skuid 999 return/)
  assert.match(calls[0]!, /meta skuid \{ 0, 64055 \} dnat ip to/)
})
