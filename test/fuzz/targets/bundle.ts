/**
 * A bundle whose far end lies: frames in any order and of any kind, acknowledgements of what was never sent, links that
 * break and are resumed with wrong counts; and what stands on it (streams, rpc). It ends in an error that is named, all that
 * waited for it hears of that, and what was delivered is what came, in its order, once.
 */
import assert from 'node:assert/strict'
import { type Duplex, duplexPair } from 'node:stream'
import { LostError, RefusedError, SwamError } from '../../../lib/core/errors.ts'
import { IN_FLIGHT_BYTES_MAX } from '../../../lib/core/limits.ts'
import { Bundle } from '../../../lib/peer/bundle.ts'
import { FrameChannel } from '../../../lib/peer/channel.ts'
import { RPC_REQUEST, RPC_RESPONSE, Rpc } from '../../../lib/peer/rpc.ts'
import {
  STREAM_CREDIT,
  STREAM_DATA,
  STREAM_END,
  STREAM_OPEN,
  STREAM_RESET,
  StreamMux,
} from '../../../lib/peer/stream.ts'
import {
  encodeFrame,
  encodeU48,
  FRAME_ABORT,
  FRAME_ACK,
  FRAME_CLOSE,
  FRAME_PING,
  FRAME_PONG,
  type FrameClass,
  FrameDecoder,
  isSequenced,
} from '../../../lib/wire/frame.ts'
import { FEATURE_RESUME } from '../../../lib/wire/hello.ts'
import type { FuzzTarget } from '../target.ts'
import { anySteps, Script, turn } from './script.ts'

const STEPS_MAX = 120
/** What the far end says between two frames whose meaning does not matter. */
const PLAIN = 16
const STREAM_TYPES = [STREAM_OPEN, STREAM_DATA, STREAM_DATA, STREAM_END, STREAM_RESET, STREAM_CREDIT]
const RPC_TEXTS = [
  '{"id":1,"method":"echo","params":{"a":1}}',
  '{"id":2,"method":"fail"}',
  '{"id":3,"method":"never"}',
  '{"id":1,"result":7}',
  '{"id":2,"error":{"code":"SWAM_REFUSED","message":"no"}}',
  '{"id":-1}',
  '[]',
  '{"id":1,"error":null}',
]

type User = 'plain' | 'streams' | 'rpc'

/** The far end: writes what it is told to, and counts what it hears. */
class FarEnd {
  readonly #channels: Duplex[] = []
  readonly sent = new Map<number, string[]>()
  sequence = 0
  /** Bytes of sequenced frames that it got. */
  heardBytes = 0

  /** New channels; gives their near ends. */
  link(count: number): FrameChannel[] {
    return Array.from({ length: count }, () => {
      const [far, near] = duplexPair()
      const decoder = new FrameDecoder()
      far.on('error', () => undefined)
      far.on('data', (bytes: Buffer) => {
        for (const frame of decoder.push(bytes)) {
          if (isSequenced(frame.type)) this.heardBytes += 12 + frame.payload.length
        }
      })
      this.#channels.push(far)
      return new FrameChannel(near)
    })
  }

  write(script: Script, bytes: Buffer): void {
    const channel = this.#channels.at(-1 - script.below(2)) ?? this.#channels.at(-1)
    if (channel !== undefined && !channel.destroyed && !channel.writableEnded) channel.write(bytes)
  }

  frame(script: Script, type: number, payload: Buffer): void {
    let sequence = 0
    if (isSequenced(type)) {
      // Mostly the next one; sometimes one that came, or one far ahead.
      sequence = script.once(12) ? script.below(40) : this.sequence++
      this.sent.set(sequence, [...(this.sent.get(sequence) ?? []), `${type} ${payload.toString('hex')}`])
    }
    this.write(script, encodeFrame(type, script.below(4) as FrameClass, sequence, payload))
  }

  /** Goes on behind what was delivered, as who resumes does. */
  rewind(deliveredBytes: number): void {
    let bytes = 0
    this.sequence = 0
    while (bytes < deliveredBytes) {
      const [frame] = this.sent.get(this.sequence++) ?? []
      if (frame === undefined) return
      bytes += 12 + (frame.length - frame.indexOf(' ') - 1) / 2
    }
  }

  cut(): void {
    for (const channel of this.#channels.splice(0)) channel.destroy()
  }
}

export const bundleTarget: FuzzTarget = {
  name: 'bundle',
  inputBytesMax: 1024,
  allocationBytesMax: 8 * 1024 * 1024,
  generate: (random) => anySteps(random, 300),
  async run(input) {
    const script = new Script(input)
    const user = script.pick<User>(['plain', 'streams', 'rpc'])
    const resumes = script.once(2)
    const far = new FarEnd()
    const bundle = new Bundle({
      id: 'ab'.repeat(16),
      kind: user === 'rpc' ? 'control' : user === 'streams' ? 'ram' : 'disk',
      peer: 'far',
      migrationId: '',
      features: new Set(resumes ? [FEATURE_RESUME] : []),
      dialed: script.once(2),
      channels: far.link(2),
      connections: [],
      peerWindowBytes: IN_FLIGHT_BYTES_MAX,
      closeMs: 100,
    })
    const pending: Promise<unknown>[] = []
    const wait = (work: Promise<unknown>): void => {
      const judged = work.catch((error: unknown) => assert.ok(error instanceof SwamError, error as Error))
      judged.catch(() => undefined)
      pending.push(judged)
    }
    const delivered = use(bundle, user, wait)
    for (let steps = 0; steps < STEPS_MAX && !script.over && !bundle.ended; steps++) {
      if (script.once(2)) await turn()
      step(script, far, bundle, user, wait, delivered)
    }
    await turn()
    far.cut()
    await turn()
    await bundle.close(new LostError('the end of the test'))
    const error = await bundle.closed
    assert.ok(error === undefined || error instanceof SwamError, error)
    await Promise.all(pending)
    delivered.frames.forEach((frame, sequence) => {
      assert.ok(far.sent.get(sequence)?.includes(frame), `frame ${sequence} is not what was sent`)
    })
  },
}

interface Used {
  /** What a plain user was given, in its order. */
  readonly frames: string[]
  readonly mux: StreamMux | undefined
  readonly rpc: Rpc | undefined
}

function use(bundle: Bundle, user: User, wait: (work: Promise<unknown>) => void): Used {
  const frames: string[] = []
  if (user === 'streams') {
    const mux = new StreamMux(bundle, (_meta, stream) => {
      stream.on('error', () => undefined)
      stream.pipe(stream)
    })
    return { frames, mux, rpc: undefined }
  }
  if (user === 'rpc') {
    const rpc = new Rpc(bundle)
    rpc.handle('echo', async (params) => params)
    rpc.handle('fail', async () => {
      throw new RefusedError('no')
    })
    rpc.handle('never', () => bundle.closed)
    wait(rpc.call('ask', { a: 1 }))
    return { frames, mux: undefined, rpc }
  }
  bundle.onFrame = (type, payload) => frames.push(`${type} ${payload.toString('hex')}`)
  return { frames, mux: undefined, rpc: undefined }
}

function step(
  script: Script,
  far: FarEnd,
  bundle: Bundle,
  user: User,
  wait: (work: Promise<unknown>) => void,
  used: Used,
): void {
  switch (script.below(14)) {
    case 0:
    case 1:
    case 2:
      far.frame(script, ...message(script, user))
      return
    case 3:
      // An honest acknowledgement, or one of something else.
      far.frame(script, FRAME_ACK, encodeU48(script.once(4) ? script.below(4096) : far.heardBytes))
      return
    case 4:
      far.frame(script, script.pick([FRAME_PING, FRAME_PONG]), encodeU48(script.below(4096)))
      return
    case 5:
      if (script.once(8)) far.frame(script, script.pick([FRAME_CLOSE, FRAME_ABORT, 1, 2]), script.take(9))
      return
    case 6:
      if (script.once(6)) far.write(script, Buffer.from(script.take(30)))
      return
    case 7:
      wait(bundle.send(PLAIN, [Buffer.alloc(script.below(3000), 1)], script.below(4) as FrameClass))
      return
    case 8:
      if (script.once(2)) bundle.pause()
      else bundle.resume()
      return
    case 9:
      if (used.rpc !== undefined) wait(used.rpc.call('echo', script.below(9)))
      return
    case 10: {
      const stream = used.mux?.open({ port: 1 + script.below(65_535) })
      stream?.on('error', () => undefined).resume()
      stream?.write(Buffer.alloc(script.below(9000), 2))
      if (script.once(2)) stream?.end()
      return
    }
    case 11:
      if (!script.once(4)) return
      far.cut()
      return
    case 12: {
      // A far end that says what it got may lie about that.
      if (bundle.ended || !bundle.features.has(FEATURE_RESUME)) return
      far.cut()
      far.rewind(bundle.suspend())
      const peerDeliveredBytes = script.once(3) ? script.below(9000) : far.heardBytes
      bundle.resumeOver({ channels: far.link(2), connections: [], peerDeliveredBytes })
      return
    }
    default:
      if (script.once(20)) wait(bundle.close())
  }
}

function message(script: Script, user: User): [type: number, payload: Buffer] {
  if (user === 'rpc') {
    const text = Buffer.from(script.pick(RPC_TEXTS))
    if (script.once(4)) text[script.below(text.length)] = script.below(256)
    return [script.pick([RPC_REQUEST, RPC_RESPONSE]), text]
  }
  if (user === 'streams') {
    const type = script.pick(STREAM_TYPES)
    const id = Buffer.from([0, 0, 0, script.below(6)])
    if (type === STREAM_OPEN) return [type, Buffer.concat([id, Buffer.from('{"port":49152}')])]
    if (type === STREAM_CREDIT) return [type, Buffer.concat([id, Buffer.from([0, 0, script.below(256), 0])])]
    return [type, Buffer.concat([id, script.take(script.below(60))])]
  }
  return [PLAIN + script.below(100), Buffer.from(script.take(script.below(40)))]
}
