/**
 * The listeners of an outgoing migration over real sockets and bundles in memory: who comes in, what a peer that arms
 * without end gets, and that a connection too many is the end of that connection only.
 */
import assert from 'node:assert/strict'
import { once } from 'node:events'
import { connect } from 'node:net'
import { test } from 'node:test'
import { setTimeout as sleep } from 'node:timers/promises'
import { DOOR_WAITING_MAX, MIGRATION_CAUGHT_PORTS_MAX, STREAMS_MAX } from '../../../lib/core/limits.ts'
import { LISTENER, ME, start, until } from './outgoing-rig.ts'

test('who has the right user comes in, and nobody else', async (context) => {
  const mine = await start(context, [ME])
  await mine.migration.arm([mine.port], null)
  const one = await mine.client()
  await until('the echo', () => one.got() === 'hello')

  const other = await start(context, [ME + 1])
  await other.migration.arm([other.port], null)
  const two = await other.client()
  await until('the end', () => two.socket.destroyed)
  assert.equal(two.got(), '')
  assert.deepEqual(other.streams, [])
  assert.match(other.lines.join(''), /not from libvirtd or QEMU/)
})

test('a stranger is no connection: the migration goes on waiting for the first one', async (context) => {
  const { migration, port, client, ended } = await start(context, [ME + 1])
  await migration.arm([port], null)
  const { socket } = await client()
  await until('the end', () => socket.destroyed)
  // A connection that ends is followed by 1.5 s in which another one may come, and then by the end of the migration.
  await sleep(2500)
  assert.equal(ended(), false)
})

test('strangers without end: put out in batches, said once in a while, and what waits is bounded', async (context) => {
  const { migration, port, client, lines } = await start(context, [ME + 1])
  await migration.arm([port], null)
  const clients = await Promise.all(Array.from({ length: 1500 }, () => client('x')))
  await until('all to be put out', () => clients.every(({ socket }) => socket.destroyed))
  assert.ok(clients.every(({ got }) => got() === ''))
  assert.ok(lines.length < 100, `${lines.length} lines`)
  assert.ok(DOOR_WAITING_MAX < 1500)
})

test('arm at once, and again: one listener for each port, at most eight, none left at the end', async (context) => {
  const { migration, port, picked, ended } = await start(context, [ME])
  await Promise.all(Array.from({ length: 20 }, () => migration.arm([port], null)))
  assert.equal(picked.length, 1)
  const more = Array.from({ length: MIGRATION_CAUGHT_PORTS_MAX - 1 }, (_, at) => 40_000 + at)
  await migration.arm(more.slice(0, 3), null)
  await migration.arm(more.slice(3), null)
  assert.equal(picked.length, MIGRATION_CAUGHT_PORTS_MAX)
  await assert.rejects(migration.arm([40_100], null), /9 ports/)
  assert.equal(migration.entries.length, MIGRATION_CAUGHT_PORTS_MAX)
  const late = migration.arm([port], null)
  await migration.abort('enough')
  await late.catch(() => undefined)
  assert.ok(ended())
  for (const listenPort of picked) {
    const [error] = (await once(connect({ host: LISTENER, port: listenPort }), 'error')) as [Error]
    assert.match(error.message, /ECONNREFUSED/, `a listener is left at ${listenPort}`)
  }
})

test('a connection beyond the streams of a bundle is put out; the daemon and the others go on', async (context) => {
  const { migration, port, client, streams } = await start(context, [ME])
  const unhandled: unknown[] = []
  const note = (error: unknown): void => void unhandled.push(error)
  process.on('unhandledRejection', note)
  context.after(() => process.off('unhandledRejection', note))
  await migration.arm([port], null)
  const clients = await Promise.all(Array.from({ length: STREAMS_MAX + 20 }, () => client()))
  await until(
    'the surplus to be put out',
    () => clients.filter(({ socket }) => socket.destroyed).length >= 20,
  )
  await until('the echoes', () => clients.filter(({ got }) => got() === 'hello').length === STREAMS_MAX)
  assert.equal(streams.length, STREAMS_MAX)
  clients.find(({ socket }) => !socket.destroyed)!.socket.destroy()
  await sleep(200)
  const later = await client()
  await until('one that comes when there is room', () => later.got() === 'hello')
  assert.deepEqual(unhandled, [])
})
