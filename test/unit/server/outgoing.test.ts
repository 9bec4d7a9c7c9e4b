/**
 * The listeners of an outgoing migration over real sockets and bundles in memory: who comes in, what a peer that arms
 * without end gets, and that a connection too many is the end of that connection only.
 */
import assert from 'node:assert/strict'
import { once } from 'node:events'
import { connect, createServer, type Socket } from 'node:net'
import { test } from 'node:test'
import { setTimeout as sleep } from 'node:timers/promises'
import { DOOR_WAITING_MAX, MIGRATION_CAUGHT_PORTS_MAX, STREAMS_MAX } from '../../../lib/core/limits.ts'
import { relay } from '../../../server/migration/relay.ts'
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

test('a connection that is caught although the migration goes direct gets what it would have found', async (context) => {
  const gate = Promise.withResolvers<void>()
  const { migration, port, lines } = await start(context, [ME], {
    // The second one only says that connections to the listener are the peer's.
    peerAddresses: ['127.0.0.2', LISTENER],
    disarm: () => gate.promise,
  })
  const arrived: Socket[] = []
  const far = createServer({ allowHalfOpen: true }, (socket) => {
    arrived.push(socket)
    socket.on('error', () => undefined)
    socket.write('far ')
    socket.on('data', (bytes) => socket.write(bytes))
    socket.on('end', () => socket.end(' over'))
  }).listen(port, '127.0.0.2')
  await once(far, 'listening')
  context.after(() => far.close())
  await migration.arm([port], null)
  const direct = migration.goDirect('the far side says so')
  assert.deepEqual(migration.entries, [])

  const client = async (): Promise<{ socket: Socket; got: () => string }> => {
    const socket = connect({ host: LISTENER, port, localAddress: '127.0.0.1', allowHalfOpen: true })
    let got = ''
    socket.on('data', (bytes) => {
      got += bytes.toString('latin1')
    })
    socket.on('error', () => undefined)
    context.after(() => socket.destroy())
    return { socket, got: () => got }
  }
  const one = await client()
  one.socket.end('hello')
  await until('all of it', () => one.got() === 'far hello over')
  assert.match(lines.join(''), /caught although the migration goes direct/)
  // What breaks on one side breaks on the other.
  const two = await client()
  await until('its far end', () => arrived.length === 2 && two.got() === 'far ')
  arrived[1]!.resetAndDestroy()
  await until('its end', () => two.socket.destroyed)
  far.close()
  await assert.rejects(
    relay(one.socket, ['127.0.0.2'], port),
    /connect to port \d+: 127\.0\.0\.2: .*ECONNREFUSED/,
  )

  gate.resolve()
  await direct
  const [error] = (await once((await client()).socket, 'error')) as [NodeJS.ErrnoException]
  assert.equal(error.code, 'ECONNREFUSED')
})

test('while what is caught is let go the end of a migration refuses nobody, and serves nobody', async (context) => {
  const gate = Promise.withResolvers<void>()
  const { migration, port, client, streams } = await start(context, [ME], { disarm: () => gate.promise })
  await migration.arm([port], null)
  const ended = migration.abort('enough')
  const { socket, got } = await client()
  await until('it to be put out', () => socket.destroyed)
  assert.equal(got(), '')
  assert.deepEqual(streams, [])
  gate.resolve()
  await ended
})
