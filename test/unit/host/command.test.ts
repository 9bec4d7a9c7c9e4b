/** Running a program: its output, and each way in which it can fail. */
import assert from 'node:assert/strict'
import { test } from 'node:test'
import { LostError, RefusedError, TimeoutError } from '../../../lib/core/errors.ts'
import { CommandError, runCommand } from '../../../lib/host/command.ts'
import { parseJobInfo } from '../../../lib/host/libvirt.ts'
import { parseListing, Redirect } from '../../../lib/host/redirect.ts'

const limits = { deadlineMs: 10_000, outputBytesMax: 1000 }

test('output, input, exit status, signal', async () => {
  assert.equal(await runCommand(['cat'], { ...limits, input: 'hello' }), 'hello')
  assert.equal(await runCommand(['true'], { ...limits, input: 'x'.repeat(1_000_000) }), '')
  await assert.rejects(runCommand(['sh', '-c', 'echo bad >&2; exit 3'], limits), (error) => {
    assert.ok(error instanceof CommandError)
    assert.equal(error.exitCode, 3)
    assert.match(error.message, /ended with 3: bad/)
    return true
  })
  await assert.rejects(runCommand(['sh', '-c', 'kill -9 $$'], limits), /was killed: no message/)
})

test('a program that is not there, one that hangs, one that floods, one that is not wanted', async () => {
  await assert.rejects(runCommand(['/nonexistent/program'], limits), LostError)
  await assert.rejects(runCommand(['sleep', '60'], { ...limits, deadlineMs: 50 }), TimeoutError)
  // A grandchild that keeps the pipes does not keep us.
  await assert.rejects(
    runCommand(['sh', '-c', 'sleep 5 & wait'], { ...limits, deadlineMs: 50 }),
    TimeoutError,
  )
  await assert.rejects(runCommand(['yes'], limits), RefusedError)
  await assert.rejects(runCommand(['sleep', '60'], { ...limits, signal: AbortSignal.timeout(50) }), LostError)
  await assert.rejects(runCommand(['sleep', '60'], { ...limits, signal: AbortSignal.abort() }), LostError)
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
