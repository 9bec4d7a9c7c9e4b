/**
 * PeerListener with strangers and hostile peers on its socket: preambles, hellos and frames in any pieces over several
 * connections at once. Whoever is refused hears why in an error that is named; whoever is honest still gets its bundle.
 */
import assert from 'node:assert/strict'
import { once } from 'node:events'
import { mkdtempSync, rmSync } from 'node:fs'
import { connect, type Socket } from 'node:net'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { LostError, SwamError } from '../../../lib/core/errors.ts'
import { FRAME_PAYLOAD_BYTES_MAX, HELLO_BYTES_MAX } from '../../../lib/core/limits.ts'
import { PeerListener } from '../../../lib/peer/accept.ts'
import type { Bundle } from '../../../lib/peer/bundle.ts'
import { encodeFrame, FRAME_HELLO, FrameDecoder } from '../../../lib/wire/frame.ts'
import { encodeHello, type Hello, PROTOCOL_VERSION } from '../../../lib/wire/hello.ts'
import type { FuzzTarget } from '../target.ts'
import { PEER_WORDS } from './peer.ts'
import { anySteps, Script, turn, until } from './script.ts'

const HALF_OPEN_MS = 300
const SOCKETS = 3
/** Every so many inputs an honest peer comes. */
const HONEST_INPUTS = 64

let folder: string | undefined
let listener: PeerListener | undefined
let bundles: Bundle[] = []
let fault: unknown
let inputs = 0

async function listening(): Promise<PeerListener> {
  if (listener !== undefined) return listener
  const made = mkdtempSync(join(tmpdir(), 'swam-fuzz-'))
  folder = made
  process.on('exit', () => rmSync(made, { recursive: true, force: true }))
  listener = await PeerListener.listen({
    path: join(made, 'peer.sock'),
    localName: 'here',
    features: ['resume'],
    halfOpenMs: HALF_OPEN_MS,
    resumeMs: 100,
    onBundle: (bundle) => {
      bundles.push(bundle)
      bundle.onFrame = () => undefined
    },
    onRefused: (peer, error) => {
      if (!(error instanceof SwamError)) fault ??= error
      if (/[\s\p{C}]/u.test(peer)) fault ??= new Error(`a peer named ${JSON.stringify(peer)}`)
    },
  })
  return listener
}

function hello(fields: Partial<Hello>): Buffer {
  const whole: Hello = {
    version: PROTOCOL_VERSION,
    bundle: 'ab'.repeat(16),
    kind: 'disk',
    channel: 0,
    channels: 1,
    name: 'there',
    migration: '',
    features: ['resume'],
    windowBytes: 1024 * 1024,
    instance: '',
    ...fields,
  }
  return encodeFrame(FRAME_HELLO, 0, 0, encodeHello(whole))
}

function preamble(peer: string): Buffer {
  return Buffer.from(
    `${JSON.stringify({ peer, version: 1, connection: '192.0.2.7 40000 198.51.100.1 22' })}\n`,
  )
}

/** Connects, says hello, and must be given the bundle. */
async function honest(path: string): Promise<void> {
  const before = bundles.length
  const socket = connect({ path })
  socket.on('error', () => undefined)
  const id = (inputs % 2 ** 31).toString(16).padStart(32, '0')
  socket.write(Buffer.concat([preamble('honest'), hello({ bundle: id })]))
  const decoder = new FrameDecoder()
  let answer: number | undefined
  socket.on('data', (bytes: Buffer) => {
    for (const frame of decoder.push(bytes)) answer ??= frame.type
  })
  await until(() => answer !== undefined || socket.destroyed)
  assert.equal(answer, FRAME_HELLO, 'an honest peer was refused')
  assert.ok(bundles.slice(before).some((bundle) => bundle.peer === 'honest' && bundle.id === id))
  socket.destroy()
}

function said(script: Script): Buffer {
  switch (script.below(8)) {
    case 0:
    case 1:
      return preamble(script.pick(['fra1', 'ams1', '', 'a b', 'x'.repeat(300)]))
    case 2:
    case 3:
    case 4:
      return hello({
        bundle: script.pick(['ab', 'cd', '00']).repeat(16),
        kind: script.pick(['control', 'disk', 'ram'] as const),
        channel: script.below(3),
        channels: 1 + script.below(3),
        ...(script.once(3)
          ? { resume: { attempt: script.below(3), deliveredBytes: script.below(100) } }
          : {}),
      })
    case 5:
      return encodeFrame(script.pick([3, 4, 6, 7, 16]), 0, 0, Buffer.from(script.take(6)))
    default:
      return Buffer.from(script.take(20))
  }
}

export const peerListener: FuzzTarget = {
  name: 'peer-listener',
  inputBytesMax: 1024,
  allocationBytesMax: FRAME_PAYLOAD_BYTES_MAX + HELLO_BYTES_MAX,
  dictionary: PEER_WORDS,
  generate: (random) => anySteps(random, 120),
  async close() {
    await listener?.close()
    listener = undefined
    if (folder !== undefined) rmSync(folder, { recursive: true, force: true })
  },
  async run(input) {
    const { path } = await listening()
    fault = undefined
    bundles = []
    const script = new Script(input)
    const sockets: Socket[] = []
    for (let index = 0; index < SOCKETS; index++) {
      const socket = connect({ path })
      socket.on('error', () => undefined).resume()
      // Most connections are introduced well: what comes after that is what is looked at.
      if (!script.once(4)) socket.write(preamble('fra1'))
      sockets.push(socket)
    }
    for (let steps = 0; steps < 30 && !script.over; steps++) {
      const socket = sockets[script.below(SOCKETS)]!
      if (!socket.destroyed) socket.write(said(script))
      if (script.once(4)) await turn()
    }
    await turn()
    for (const socket of sockets) {
      if (!socket.destroyed) socket.destroySoon()
    }
    await Promise.all(sockets.map((socket) => socket.closed || once(socket, 'close')))
    await turn()
    for (const bundle of bundles) {
      void bundle.close(new LostError('the end of the test'))
      const error = await bundle.closed
      assert.ok(error === undefined || error instanceof SwamError, error)
    }
    if (fault !== undefined) throw fault
    if (++inputs % HONEST_INPUTS === 0) {
      // Half-open bundles of the liars are bounded in number for their own time only.
      await honest(path)
      for (const bundle of bundles) await bundle.close(new LostError('the end of the test'))
    }
  },
}
