/** The daemon's peer socket against channels that the test speaks byte by byte, well and badly. */
import assert from 'node:assert/strict'
import { once } from 'node:events'
import { mkdtempSync, rmSync, statSync, writeFileSync } from 'node:fs'
import { connect, createServer, type Socket } from 'node:net'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { type TestContext, test } from 'node:test'
import { setTimeout as sleep } from 'node:timers/promises'
import { CHANNELS_MAX, HALF_OPEN_BUNDLES_MAX, PEER_BUNDLES_MAX } from '../../../lib/core/limits.ts'
import { MIB } from '../../../lib/core/units.ts'
import { PeerListener, type PeerListenerOptions } from '../../../lib/peer/accept.ts'
import type { Bundle } from '../../../lib/peer/bundle.ts'
import { WindowPool } from '../../../lib/peer/windows.ts'
import { encodeFrame, FRAME_HELLO, FRAME_REFUSE, type Frame, FrameDecoder } from '../../../lib/wire/frame.ts'
import {
  decodeHello,
  decodeRefusal,
  encodeHello,
  FEATURE_RESUME,
  type Hello,
} from '../../../lib/wire/hello.ts'

async function start(context: TestContext, options?: Partial<PeerListenerOptions>) {
  const directory = mkdtempSync(join(tmpdir(), 'swam-accept-'))
  const bundles: Bundle[] = []
  const refused: string[] = []
  const listener = await PeerListener.listen({
    path: join(directory, 'peer.sock'),
    localName: 'here',
    features: ['a', 'b'],
    onBundle: (bundle) => bundles.push(bundle),
    onRefused: (peer, error) => refused.push(`${peer}: ${error.message}`),
    ...options,
  })
  const sockets: Socket[] = []
  context.after(async () => {
    for (const bundle of bundles) await bundle.close(new Error('the test is over'))
    for (const socket of sockets) socket.destroy()
    await listener.close()
    rmSync(directory, { recursive: true, force: true })
  })
  /** Connects, writes, and gives the first frame that comes back, or undefined when the socket just ends. */
  const speak = async (bytes: Buffer | string): Promise<Frame | undefined> => {
    const socket = connect({ path: listener.path })
    sockets.push(socket)
    socket.on('error', () => undefined)
    socket.write(bytes)
    const decoder = new FrameDecoder()
    return await new Promise((resolve) => {
      socket.on('data', (more) => {
        const [frame] = decoder.push(more)
        if (frame !== undefined) resolve(frame)
      })
      socket.on('close', () => resolve(undefined))
    })
  }
  return { listener, bundles, refused, speak, sockets, directory }
}

test('a bundle gets its window from what all of them share, says so, and gives it back', async (t) => {
  const windows = new WindowPool({ bytesMax: 40 * MIB })
  const { bundles, speak } = await start(t, { windows })
  const answer = decodeHello((await speak(bytesOf()))!.payload)
  assert.equal(answer.windowBytes, 10 * MIB)
  assert.equal(bundles[0]!.windowBytes, 10 * MIB)
  assert.equal(windows.used, 10 * MIB)
  await bundles[0]!.close(new Error('over'))
  await bundles[0]!.closed
  assert.equal(windows.used, 0)
})

const PREAMBLE = '{"peer":"fra1","version":1,"connection":"192.0.2.7 40000 198.51.100.1 22"}\n'
const hello = (fields: Partial<Hello> = {}): Hello => ({
  version: 1,
  bundle: 'ab'.repeat(16),
  kind: 'disk',
  channel: 0,
  channels: 1,
  name: 'there',
  migration: '',
  features: ['b', 'c'],
  windowBytes: 1024 * 1024,
  instance: '',
  ...fields,
})
const bytesOf = (fields?: Partial<Hello>): Buffer =>
  Buffer.concat([Buffer.from(PREAMBLE), encodeFrame(FRAME_HELLO, 0, 0, encodeHello(hello(fields)))])
const asPeer = (peer: string, fields: Partial<Hello>): Buffer =>
  Buffer.from(bytesOf(fields).toString('latin1').replace('fra1', peer), 'latin1')
const refusal = (frame: Frame | undefined): string => {
  assert.equal(frame?.type, FRAME_REFUSE)
  return decodeRefusal(frame!.payload).message
}

test('channels of one bundle are joined, whichever comes first', async (context) => {
  const { listener, bundles, speak } = await start(context)
  assert.equal(statSync(listener.path).mode & 0o777, 0o600)
  const answers = await Promise.all([2, 0, 1].map((channel) => speak(bytesOf({ channel, channels: 3 }))))
  for (const [index, channel] of [2, 0, 1].entries()) {
    const answer = decodeHello(answers[index]!.payload)
    assert.deepEqual(
      answer,
      hello({ channel, channels: 3, name: 'here', features: ['a', 'b'], windowBytes: answer.windowBytes }),
    )
  }
  assert.equal(bundles.length, 1)
  const [bundle] = bundles
  assert.equal(bundle!.peer, 'fra1', "the name is the preamble's, not the hello's")
  assert.equal(bundle!.dialed, false)
  assert.deepEqual([...bundle!.features], ['b'])
  assert.deepEqual(bundle!.connections, [
    { localAddress: '198.51.100.1', localPort: 22, remoteAddress: '192.0.2.7', remotePort: 40_000 },
  ])
})

test('a preamble in pieces is read', async (context) => {
  const { bundles, speak, sockets } = await start(context)
  const bytes = bytesOf()
  const answer = speak(bytes.subarray(0, 10))
  for (const at of [10, 60, 90]) {
    await sleep(5)
    sockets[0]!.write(bytes.subarray(at, at === 10 ? 60 : at === 60 ? 90 : undefined))
  }
  assert.equal((await answer)?.type, FRAME_HELLO)
  assert.equal(bundles.length, 1)
})

test('another version is refused, and both are named', async (context) => {
  const { speak, refused } = await start(context)
  const message = refusal(await speak(bytesOf({ version: 9 })))
  assert.match(message, /the peer speaks protocol version 9, this swamd speaks version 1/)
  assert.match(refused[0]!, /^fra1: /)
})

for (const { name, bytes, message } of [
  { name: 'a preamble without end', bytes: Buffer.alloc(2000, 'x'), message: /no line within 1024 bytes/ },
  {
    name: 'a long preamble',
    bytes: Buffer.from(`${'x'.repeat(1100)}\n`),
    message: /no line within 1024 bytes/,
  },
  { name: 'a preamble that is not JSON', bytes: Buffer.from('hello\n'), message: /not JSON/ },
  { name: 'a preamble of null', bytes: Buffer.from('null\n'), message: /version undefined/ },
  {
    name: 'another preamble version',
    bytes: Buffer.from('{"peer":"x","version":2}\n'),
    message: /version 2, expected 1/,
  },
  { name: 'no peer name', bytes: Buffer.from('{"version":1}\n'), message: /no usable peer name/ },
  {
    name: 'a peer name with a line break',
    bytes: Buffer.from('{"peer":"a\\nb","version":1}\n'),
    message: /no usable peer name/,
  },
  {
    name: 'an oversize frame',
    bytes: Buffer.from(`${PREAMBLE}GET / HTTP/1.1\r\n\r\n`),
    message: /begins with "GET \/ HTTP\//,
  },
  {
    name: 'no hello',
    bytes: Buffer.concat([Buffer.from(PREAMBLE), encodeFrame(99, 0, 0, Buffer.alloc(0))]),
    message: /type 99, expected a hello/,
  },
]) {
  test(`hostile: ${name}`, async (context) => {
    const { speak, refused, bundles } = await start(context)
    const frame = await speak(bytes)
    if (frame !== undefined) assert.match(refusal(frame), message)
    assert.match(refused.join(), message)
    assert.equal(bundles.length, 0)
  })
}

test('hostile: a bundle kind that is none', async (context) => {
  const { speak } = await start(context)
  assert.match(refusal(await speak(bytesOf({ kind: 'tape' as Hello['kind'] }))), /bundle kind "tape"/)
})

test('hostile: a channel twice fails the half-open bundle', async (context) => {
  const { speak, bundles } = await start(context)
  const first = speak(bytesOf({ channels: 2 }))
  assert.match(refusal(await speak(bytesOf({ channels: 2 }))), /channel 0 came twice/)
  assert.match(refusal(await first), /channel 0 came twice/)
  assert.equal(bundles.length, 0)
})

test('hostile: a channel more for a whole bundle is refused, the bundle goes on', async (context) => {
  const { speak, bundles } = await start(context)
  await speak(bytesOf())
  assert.match(refusal(await speak(bytesOf())), /complete already/)
  assert.equal(bundles[0]!.ended, false)
})

for (const field of [
  { kind: 'ram' },
  { channels: 3 },
  { migration: '3f0c0c9e-6d52-4f0c-9a70-0a3c9f1f9d11' },
] as const) {
  test(`hostile: channels of one bundle that differ in ${Object.keys(field)}`, async (context) => {
    const { speak } = await start(context)
    const first = speak(bytesOf({ channels: 2 }))
    assert.match(refusal(await speak(bytesOf({ channels: 2, channel: 1, ...field }))), /another one said/)
    await first
  })
}

test('a whole bundle is resumed by channels that name it, and by no others', async (context) => {
  const { speak, bundles, refused } = await start(context, { features: [FEATURE_RESUME] })
  const features = [FEATURE_RESUME]
  const kept: Hello['resume'] = { attempt: 1, deliveredBytes: 0 }
  assert.match(refusal(await speak(bytesOf({ features, resume: kept }))), /is not known here any more/)
  await Promise.all([0, 1].map((channel) => speak(bytesOf({ features, channels: 2, channel }))))
  const [bundle] = bundles
  assert.equal(bundle!.broken, false)
  const other = Buffer.from(
    bytesOf({ features, resume: kept }).toString('latin1').replace('fra1', 'ams1'),
    'latin1',
  )
  assert.match(refusal(await speak(other)), /is not known here any more/, 'of another peer')
  assert.match(
    refusal(await speak(bytesOf({ features, kind: 'ram', resume: { ...kept, attempt: 2 } }))),
    /resumed as another one/,
  )
  assert.match(
    refusal(await speak(bytesOf({ features, channels: 1, kind: 'ram', resume: { ...kept, attempt: 3 } }))),
    /resumed as another one/,
  )
  // An earlier try of which only one channel came does not mix with the next.
  void speak(bytesOf({ features, channels: 2, resume: { ...kept, attempt: 4 } }))
  const answers = await Promise.all(
    [0, 1].map((channel) =>
      speak(bytesOf({ features, channels: 2, channel, resume: { ...kept, attempt: 5 } })),
    ),
  )
  for (const answer of answers) {
    assert.deepEqual(decodeHello(answer!.payload).resume, { attempt: 5, deliveredBytes: 0 })
  }
  assert.equal(bundles.length, 1)
  assert.equal(bundle!.resumes, 1)
  assert.equal(bundle!.ended, false)
  const apart = [0, 1].map((channel) =>
    speak(bytesOf({ features, channels: 2, channel, resume: { attempt: 6, deliveredBytes: channel } })),
  )
  assert.match(refusal(await apart[1]), /tell different delivered bytes/)
  assert.equal(bundle!.ended, false)
  assert.ok(refused.length >= 5)
})

test('a bundle without the feature is not resumed', async (context) => {
  const { speak, bundles } = await start(context)
  await speak(bytesOf())
  assert.match(
    refusal(await speak(bytesOf({ resume: { attempt: 1, deliveredBytes: 0 } }))),
    /it cannot be resumed/,
  )
  assert.equal(bundles[0]!.ended, false)
})

test('a bundle of another peer with the same id is another bundle', async (context) => {
  const { speak, bundles } = await start(context)
  await speak(bytesOf())
  assert.equal((await speak(asPeer('ams1', {})))?.type, FRAME_HELLO)
  assert.deepEqual(
    bundles.map(({ peer }) => peer),
    ['fra1', 'ams1'],
  )
})

test('half-open bundles end after a time', async (context) => {
  const { speak, refused } = await start(context, { halfOpenMs: 50 })
  const silent = speak('')
  assert.match(refusal(await speak(bytesOf({ channels: 2 }))), /its 2 channels did not come in 50 ms/)
  assert.equal(await silent, undefined)
  assert.match(refused.join(), /did not come in 50 ms/)
})

test('half-open bundles are bounded in number', async (context) => {
  const { speak } = await start(context)
  const held = Array.from({ length: 16 }, (_, index) =>
    speak(asPeer(index < 8 ? 'ams1' : 'ams2', { channels: 2, bundle: index.toString(16).padStart(32, '0') })),
  )
  await sleep(50)
  assert.match(refusal(await speak(bytesOf({ channels: 2 }))), /^16 bundles are half open already/)
  void held
})

test('channels that have not said who they are are bounded in number', async (context) => {
  const { speak, refused } = await start(context)
  const most = HALF_OPEN_BUNDLES_MAX * CHANNELS_MAX
  const silent = Array.from({ length: most }, () => speak(''))
  await sleep(50)
  assert.deepEqual(refused, [])
  assert.equal(await speak(bytesOf()), undefined)
  assert.match(refused.join(), new RegExp(`^: ${most} channels are half open already$`))
  void silent
})

test('one peer opens bundles without end: another one finds room', async (context) => {
  const { speak, bundles } = await start(context)
  const id = (index: number): string => index.toString(16).padStart(32, '0')
  for (let index = 0; index < 8; index++) void speak(bytesOf({ channels: 2, bundle: id(index) }))
  await sleep(50)
  assert.match(refusal(await speak(bytesOf({ channels: 2 }))), /^8 bundles of fra1 are half open already/)
  assert.equal((await speak(asPeer('ams1', {})))?.type, FRAME_HELLO)
  for (let index = 0; index < PEER_BUNDLES_MAX - 1; index++) {
    assert.equal((await speak(asPeer('ams1', { bundle: id(100 + index) })))?.type, FRAME_HELLO)
  }
  assert.match(
    refusal(await speak(asPeer('ams1', { bundle: id(999) }))),
    new RegExp(`^${PEER_BUNDLES_MAX} bundles of ams1 are open already`),
  )
  assert.equal((await speak(asPeer('ams2', { bundle: id(999) })))?.type, FRAME_HELLO)
  assert.equal(bundles.length, PEER_BUNDLES_MAX + 1)
})

test('whole bundles are bounded in number, and one that ended makes room', async (context) => {
  const { speak, bundles } = await start(context, { bundlesMax: 1 })
  await speak(bytesOf())
  assert.match(refusal(await speak(bytesOf({ bundle: 'cd'.repeat(16) }))), /1 bundles are open already/)
  await bundles[0]!.close(new Error('over'))
  assert.equal((await speak(bytesOf({ bundle: 'cd'.repeat(16) })))?.type, FRAME_HELLO)
})

test('a socket left by a dead daemon is replaced, one in use or anything else is not', async (context) => {
  const { listener, directory } = await start(context)
  await assert.rejects(
    PeerListener.listen({ path: listener.path, localName: 'x', onBundle: () => undefined }),
    /another swamd listens on it/,
  )
  const file = join(directory, 'file')
  writeFileSync(file, 'precious')
  await assert.rejects(
    PeerListener.listen({ path: file, localName: 'x', onBundle: () => undefined }),
    /no socket lies there/,
  )
  const stale = join(directory, 'stale.sock')
  const server = createServer().listen({ path: `${stale}.tmp` })
  await once(server, 'listening')
  const { renameSync } = await import('node:fs')
  renameSync(`${stale}.tmp`, stale)
  server.close()
  await once(server, 'close')
  assert.ok(statSync(stale).isSocket())
  const second = await PeerListener.listen({ path: stale, localName: 'x', onBundle: () => undefined })
  await second.close()
})
