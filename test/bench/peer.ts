/**
 * The peer channel: MiB/s through a real sshd and swam-peer with 1, 4 and 8 channels, beside a plain TCP socket between
 * the same two processes in the same run; how many round trips dialing takes; how full a link of 100 Mbit/s and 50 ms is
 * kept, with which queue; and how late the event loop runs while eight bundles are full. Every transfer's digest is
 * verified. The source is a process of its own, as in life (this file, forked); data flows from it, as a disk does.
 */
import { type ChildProcess, fork } from 'node:child_process'
import { createHash } from 'node:crypto'
import { once } from 'node:events'
import { type AddressInfo, connect, createServer, type Server, type Socket } from 'node:net'
import { LoopWatch } from '../../lib/core/loop-watch.ts'
import { PeerListener } from '../../lib/peer/accept.ts'
import type { Bundle } from '../../lib/peer/bundle.ts'
import { type DialOptions, dialBundle, sshCrypto } from '../../lib/peer/ssh.ts'
import { FRAME_BULK } from '../../lib/wire/frame.ts'
import { startSshd, type TestSshd } from '../interop/ssh-server.ts'

const MIB = 1024 * 1024
const FRAME_BYTES = 128 * 1024
const TOTAL_BYTES = 512 * MIB

interface Report {
  readonly sha256: string
  readonly rttMs?: number | undefined
  readonly minRttMs?: number | undefined
  readonly mbitPerSecond?: number
}

export async function run(): Promise<object> {
  const sshd = await startSshd()
  const source = fork(import.meta.filename, ['source', sshd.socketPath])
  try {
    const [ready] = (await once(source, 'message')) as [{ port: number }]
    const dial = dialOptions(sshd)
    const raw = await rawTransfer(source, ready.port)
    const channels: Record<string, number> = {}
    for (const count of [1, 4, 8])
      channels[count] = await bundleTransfer(source, { ...dial, channels: count }, TOTAL_BYTES)
    return {
      crypto: sshCrypto(),
      bytes: TOTAL_BYTES,
      frameBytes: FRAME_BYTES,
      rawSocketMiBPerSecond: raw,
      sshMiBPerSecondByChannels: channels,
      dial: await measureDial(dial),
      at100msMiBPerSecondByChannels: await measureLong(source, dial),
      wan: await measureWan(source, dial),
      eightAtOnce: await measureAtOnce(source, dial),
      digestsVerified: true,
    }
  } finally {
    source.kill()
    await sshd.close()
  }
}

function dialOptions(sshd: TestSshd): DialOptions {
  return {
    addresses: ['127.0.0.1'],
    port: sshd.port,
    user: sshd.user,
    privateKey: sshd.privateKey,
    hostKey: sshd.hostKey,
    kind: 'disk',
    migrationId: '',
    channels: 1,
    localName: 'target',
    timeoutMs: 60_000,
  }
}

async function rawTransfer(source: ChildProcess, port: number): Promise<number> {
  const report = once(source, 'message') as Promise<[Report]>
  const socket = connect({ port, host: '127.0.0.1' })
  const hash = createHash('sha256')
  const started = performance.now()
  for await (const bytes of socket) hash.update(bytes as Buffer)
  const seconds = (performance.now() - started) / 1000
  verify(hash.digest('hex'), (await report)[0])
  return Math.round(TOTAL_BYTES / MIB / seconds)
}

async function bundleTransfer(source: ChildProcess, dial: DialOptions, bytes: number): Promise<number> {
  const bundle = await dialBundle(dial)
  const { seconds } = await receive(source, bundle, bytes)
  await bundle.close()
  return Math.round(bytes / MIB / seconds)
}

async function receive(
  source: ChildProcess,
  bundle: Bundle,
  bytes: number,
): Promise<{ seconds: number; report: Report }> {
  const hash = createHash('sha256')
  let gotBytes = 0
  const done = Promise.withResolvers<void>()
  bundle.onFrame = (_, payload) => {
    hash.update(payload)
    gotBytes += payload.length
    if (gotBytes === bytes) done.resolve()
  }
  const message = once(source, 'message') as Promise<[Report]>
  const started = performance.now()
  source.send({ bundle: bundle.id, bytes })
  await done.promise
  const seconds = (performance.now() - started) / 1000
  const [report] = await message
  verify(hash.digest('hex'), report)
  return { seconds, report }
}

function verify(sha256: string, report: Report): void {
  if (sha256 !== report.sha256)
    throw new Error(`the digest of what arrived is ${sha256}, expected ${report.sha256}`)
}

/** The difference between two delays leaves only the round trips. */
async function measureDial(dial: DialOptions): Promise<object> {
  const timed = async (rttMs: number, channels: number): Promise<number> => {
    await using link = await startLink(dial.port, rttMs / 2, Number.POSITIVE_INFINITY)
    const started = performance.now()
    const bundle = await dialBundle({ ...dial, port: link.port, channels })
    const elapsed = performance.now() - started
    await bundle.close()
    return elapsed
  }
  const result: Record<string, object> = {}
  for (const channels of [1, 4, 8]) {
    const nearMs = await timed(0, channels)
    const farMs = await timed(200, channels)
    result[channels] = { loopbackMs: Math.round(nearMs), roundTrips: Math.round((farMs - nearMs) / 20) / 10 }
  }
  return result
}

async function measureWan(source: ChildProcess, dial: DialOptions): Promise<object> {
  const mbit = 100
  const rttMs = 50
  const bytes = 96 * MIB
  await using link = await startLink(dial.port, rttMs / 2, (mbit * 1e6) / 8)
  const bundle = await dialBundle({ ...dial, port: link.port, channels: 4 })
  const { seconds, report } = await receive(source, bundle, bytes)
  await bundle.close()
  return {
    mbit,
    rttMs,
    payloadShareOfLink: Math.round((bytes / seconds / ((mbit * 1e6) / 8)) * 1000) / 1000,
    longestQueueMs: Math.round(link.longestQueueMs()),
    rttUnderLoadMs: report.rttMs,
    minRttMs: report.minRttMs,
  }
}

/** What eight migrations do to the event loop of the process that receives them; in milliseconds. */
async function measureAtOnce(source: ChildProcess, dial: DialOptions): Promise<object> {
  const bundles: Bundle[] = []
  for (let count = 0; count < 8; count += 1) bundles.push(await dialBundle({ ...dial, channels: 4 }))
  const bytes = 96 * MIB
  const watch = new LoopWatch()
  watch.start()
  const started = performance.now()
  await Promise.all(bundles.map((bundle) => receive(source, bundle, bytes)))
  const seconds = (performance.now() - started) / 1000
  watch.stop()
  const { maxMs, p99Ms, busyMaxMs } = watch.report()
  await Promise.all(bundles.map((bundle) => bundle.close()))
  return {
    mibPerSecond: Math.round((bundles.length * bytes) / MIB / seconds),
    loopLateMs: { max: maxMs, p99: p99Ms, ownWorkMax: busyMaxMs },
  }
}

/** What windows of 2 MiB a channel leave of a long path. The relay ends TCP, so its windows play no part. */
async function measureLong(source: ChildProcess, dial: DialOptions): Promise<object> {
  const bytes = 96 * MIB
  const result: Record<string, number> = {}
  for (const channels of [1, 4, 8]) {
    await using link = await startLink(dial.port, 50, Number.POSITIVE_INFINITY)
    result[channels] = await bundleTransfer(source, { ...dial, port: link.port, channels }, bytes)
  }
  return result
}

/** A TCP relay with a delay and a rate, and a queue without end: what keeps it short is the pacing alone. */
async function startLink(port: number, delayMs: number, bytesPerSecond: number) {
  const sockets: Socket[] = []
  let longestQueueMs = 0
  const startedAt = performance.now()
  const relay = (from: Socket, to: Socket): void => {
    let freeAt = 0
    let timer: NodeJS.Timeout | undefined
    const carried: { at: number; bytes: Buffer }[] = []
    // One timer and one queue: timers of their own would overtake one another.
    const wait = (): void => {
      const first = carried[0]
      if (first === undefined || timer !== undefined) return
      timer = setTimeout(
        () => {
          timer = undefined
          const now = performance.now()
          while (carried[0] !== undefined && carried[0].at <= now + 0.5) to.write(carried.shift()!.bytes)
          wait()
        },
        Math.max(0, first.at - performance.now()),
      )
    }
    from.on('data', (bytes) => {
      const now = performance.now()
      freeAt = Math.max(freeAt, now) + (bytes.length / bytesPerSecond) * 1000
      // The kernel's own slow start and the relay's read sizes show in the first seconds.
      if (now - startedAt > 3000) longestQueueMs = Math.max(longestQueueMs, freeAt - now)
      carried.push({ at: freeAt + delayMs, bytes })
      wait()
    })
    from.on('error', () => to.destroy())
    from.on('close', () => setTimeout(() => to.destroy(), delayMs + 100))
  }
  const server: Server = createServer({ noDelay: true }, (near) => {
    const far = connect({ port, host: '127.0.0.1', noDelay: true })
    sockets.push(near, far)
    relay(near, far)
    relay(far, near)
  }).listen(0, '127.0.0.1')
  await once(server, 'listening')
  return {
    port: (server.address() as AddressInfo).port,
    longestQueueMs: () => longestQueueMs,
    [Symbol.asyncDispose]: async () => {
      for (const socket of sockets) socket.destroy()
      server.close()
      await once(server, 'close')
    },
  }
}

// ---- the source's process ----

function* parts(bytes: number): Generator<Buffer> {
  const block = Buffer.alloc(2 * FRAME_BYTES)
  for (let at = 0; at < block.length; at += 1) block[at] = (at * 2_654_435_761) >>> 13
  for (let at = 0, turn = 0; at < bytes; at += FRAME_BYTES, turn += 1) {
    const start = (turn * 4099) % FRAME_BYTES
    yield block.subarray(start, start + Math.min(FRAME_BYTES, bytes - at))
  }
}

/** Computed before the clock runs: only the receiver's hashing is part of what is measured. */
function digestOf(bytes: number): string {
  const hash = createHash('sha256')
  for (const part of parts(bytes)) hash.update(part)
  return hash.digest('hex')
}

async function serveSource(path: string): Promise<void> {
  const report = (message: object): void => {
    process.send?.(message)
  }
  const digests = new Map([TOTAL_BYTES, 96 * MIB].map((bytes) => [bytes, digestOf(bytes)]))
  const bundles = new Map<string, Bundle>()
  await PeerListener.listen({
    path,
    localName: 'source',
    onBundle: (bundle) => bundles.set(bundle.id, bundle),
  })
  process.on('message', (request: { bundle: string; bytes: number }) => {
    const bundle = bundles.get(request.bundle)!
    void (async () => {
      for (const part of parts(request.bytes)) await bundle.send(16, [part], FRAME_BULK)
      report({
        sha256: digests.get(request.bytes),
        rttMs: Math.round(bundle.rttMs.smoothed ?? 0),
        minRttMs: Math.round(bundle.rttMs.min ?? 0),
      })
    })()
  })
  const server = createServer((socket) => {
    void (async () => {
      for (const part of parts(TOTAL_BYTES)) if (!socket.write(part)) await once(socket, 'drain')
      socket.end()
      report({ sha256: digests.get(TOTAL_BYTES) })
    })()
  }).listen(0, '127.0.0.1')
  await once(server, 'listening')
  report({ port: (server.address() as AddressInfo).port })
}

if (process.argv[1] === import.meta.filename) {
  if (process.argv[2] === 'source') await serveSource(process.argv[3]!)
  else console.log(JSON.stringify(await run(), null, 2))
}
