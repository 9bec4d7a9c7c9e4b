/**
 * Dials a bundle: an SSH connection to the far host's own sshd, with one key and one known host key, and on it as many
 * exec channels as asked for; the forced command of that key joins each to the far swamd. TCP connections of its own for each
 * bundle, so that its bytes can be told apart at the link.
 *
 * More than one where the link is long: by default Linux lets one TCP connection have some 3 MB unacknowledged (tcp_wmem). A
 * second one that cannot be made is done without.
 *
 * A link that broke is dialed anew the same way (the bundle says when). It never asks for another way to log in and
 * never accepts an unknown host key.
 */
import { createHash, randomBytes } from 'node:crypto'
import { createRequire } from 'node:module'
import { connect, type Socket } from 'node:net'
import ssh2, { type Client, type ClientChannel } from 'ssh2'
import { AbsentError, errorText, LostError, RefusedError, TimeoutError } from '../core/errors.ts'
import {
  CHANNEL_END_MS,
  CHANNELS_MAX,
  DIAL_MS_MAX,
  IN_FLIGHT_BYTES_MAX,
  PEER_STDERR_BYTES_MAX,
  PING_INTERVAL_MS,
  RESUME_CONNECT_MS_MAX,
  SILENCE_MS_MAX,
} from '../core/limits.ts'
import { loopTurn } from '../core/loop-turn.ts'
import { type BundleKind, commonFeatures, type Hello, PROTOCOL_VERSION } from '../wire/hello.ts'
import { Bundle } from './bundle.ts'
import { FrameChannel } from './channel.ts'
import { greet } from './handshake.ts'
import type { BundleLink, BundleTuning } from './options.ts'

/** swam-peer's exit status when it finds no swamd. */
const NO_DAEMON_STATUS = 3
/** How long a second connection may take: so many milliseconds, and so many times what the first one took. */
const SECOND_LEAST = 500
const SECOND_SHARE = 2

export interface DialOptions extends BundleTuning {
  /** Tried in order. */
  readonly addresses: readonly string[]
  readonly port: number
  readonly user: string
  /** The content of the key file. */
  readonly privateKey: string
  /** One line as in known_hosts without the name: "ssh-ed25519 AAAA…". Compared exactly. */
  readonly hostKey: string
  readonly kind: BundleKind
  /** A uuid, or empty. */
  readonly migrationId: string
  readonly channels: number
  /** SSH connections that they are spread over; one when absent. */
  readonly connections?: number
  /** What this host calls itself. */
  readonly localName: string
  /** What this host calls the peer; its own name for itself when absent. */
  readonly peer?: string
  readonly features?: readonly string[]
  /** Which start of this daemon this is: 32 hex digits. */
  readonly instance?: string
  readonly signal?: AbortSignal
  readonly timeoutMs?: number
}

/** Which cipher code ssh2 loaded: it falls back to JavaScript without a word when its addon does not load. */
export function sshCrypto(): 'native' | 'javascript' {
  const internals = createRequire(import.meta.url)('ssh2/lib/protocol/crypto.js') as {
    bindingAvailable: boolean
  }
  return internals.bindingAvailable ? 'native' : 'javascript'
}

export async function dialBundle(options: DialOptions): Promise<Bundle> {
  if (!Number.isInteger(options.channels) || options.channels < 1 || options.channels > CHANNELS_MAX) {
    throw new RangeError(`dial: ${options.channels} channels, expected 1 to ${CHANNELS_MAX}`)
  }
  const timeoutMs = options.timeoutMs ?? DIAL_MS_MAX
  const window = options.windows?.take(options.kind)
  const own: Omit<Hello, 'channel'> = {
    version: PROTOCOL_VERSION,
    bundle: randomBytes(16).toString('hex'),
    kind: options.kind,
    channels: options.channels,
    name: options.localName,
    migration: options.migrationId,
    features: options.features ?? [],
    windowBytes: window?.bytes ?? IN_FLIGHT_BYTES_MAX,
    instance: options.instance ?? '',
  }
  // An address that swallows packets must leave time for the next one.
  const connectMs = timeoutMs / (options.addresses.length + 1)
  const limits = { signal: options.signal, timeoutMs, connectMs }
  const { link, answer } = await dialLink(options, own, limits).catch((error: unknown) => {
    window?.release()
    throw error
  })
  return new Bundle({
    ...options,
    ...link,
    id: own.bundle,
    peer: options.peer ?? answer.name,
    features: commonFeatures(own.features, answer.features),
    dialed: true,
    ...(window === undefined ? {} : { window }),
    peerWindowBytes: answer.windowBytes,
    peerInstance: answer.instance,
    reconnect: async ({ attempt, deliveredBytes, signal }) => {
      // The signal is also the deadline of the try.
      const limits = { signal, timeoutMs: undefined, connectMs: RESUME_CONNECT_MS_MAX }
      const again = await dialLink(options, { ...own, resume: { attempt, deliveredBytes } }, limits)
      return { ...again.link, peerDeliveredBytes: again.answer.resume!.deliveredBytes }
    },
  })
}

interface DialLimits {
  readonly signal: AbortSignal | undefined
  readonly timeoutMs: number | undefined
  /** For each address. */
  readonly connectMs: number
}

/** SSH connections with all channels greeted. What failed is said with the place. */
async function dialLink(
  options: DialOptions,
  own: Omit<Hello, 'channel'>,
  limits: DialLimits,
): Promise<{ link: BundleLink; answer: Hello }> {
  const { timeoutMs } = limits
  const deadline = timeoutMs === undefined ? undefined : AbortSignal.timeout(timeoutMs)
  const signal = AbortSignal.any([limits.signal, deadline].filter((one) => one !== undefined))
  const where = `ssh to ${options.user}@${options.addresses.join(',')} port ${options.port}`
  const sockets: Socket[] = []
  const onAbort = (): void => {
    for (const socket of sockets) socket.destroy()
  }
  signal.addEventListener('abort', onAbort)
  try {
    signal.throwIfAborted()
    const sinceMs = performance.now()
    const first = await connectFirst(options, signal, limits.connectMs)
    sockets.push(first)
    const logins = [await login(options, first)]
    const address = first.remoteAddress
    // A migration waits for it: what took the first one so long is enough for a second.
    const firstMs = performance.now() - sinceMs
    const moreMs = Math.ceil(Math.min(limits.connectMs, SECOND_LEAST + SECOND_SHARE * firstMs))
    const more = Array.from({ length: (options.connections ?? 1) - 1 }, async () => {
      const timeout = AbortSignal.any([signal, AbortSignal.timeout(moreMs)])
      const socket = await connectOne(address ?? '', options.port, timeout)
      sockets.push(socket)
      const refused = new Promise<never>((_, reject) => {
        timeout.addEventListener('abort', () => reject(new TimeoutError('no answer')))
      })
      logins.push(await Promise.race([login(options, socket), refused]))
    })
    await Promise.allSettled(more)
    signal.throwIfAborted()
    for (const socket of sockets) if (!logins.some((each) => each.socket === socket)) socket.destroy()
    return await openLink(options, own, logins)
  } catch (error) {
    onAbort()
    if (limits.signal?.aborted === true) {
      throw new LostError(`${where}: given up: ${errorText(limits.signal.reason)}`, { cause: error })
    }
    if (deadline?.aborted === true)
      throw new TimeoutError(`${where}: not connected in ${timeoutMs} ms`, { cause: error })
    if (error instanceof AbsentError) throw new AbsentError(`${where}: ${error.message}`, { cause: error })
    if (error instanceof RefusedError) throw new RefusedError(`${where}: ${error.message}`, { cause: error })
    throw new LostError(`${where}: ${errorText(error)}`, { cause: error })
  } finally {
    signal.removeEventListener('abort', onAbort)
  }
}

async function connectFirst(options: DialOptions, signal: AbortSignal, eachMs: number): Promise<Socket> {
  const failures: string[] = []
  for (const address of options.addresses) {
    try {
      return await connectOne(address, options.port, AbortSignal.any([signal, AbortSignal.timeout(eachMs)]))
    } catch (error) {
      failures.push(`${address}: ${errorText(error)}`)
      signal.throwIfAborted()
    }
  }
  throw new LostError(failures.length === 0 ? 'no address is known' : failures.join('; '))
}

function connectOne(host: string, port: number, signal: AbortSignal): Promise<Socket> {
  return new Promise((resolve, reject) => {
    const socket = connect({ host, port, noDelay: true })
    const onAbort = (): void => {
      socket.destroy(new TimeoutError('no answer'))
    }
    signal.addEventListener('abort', onAbort)
    socket.once('error', (error) => {
      signal.removeEventListener('abort', onAbort)
      reject(error)
    })
    socket.once('connect', () => {
      signal.removeEventListener('abort', onAbort)
      resolve(socket)
    })
  })
}

interface Login {
  readonly client: Client
  readonly socket: Socket
  /** Rejects when the connection is lost, at any later time. */
  readonly failed: Promise<never>
}

async function openLink(
  options: DialOptions,
  own: Omit<Hello, 'channel'>,
  logins: readonly Login[],
): Promise<{ link: BundleLink; answer: Hello }> {
  // The bundle is lost, or resumed, with any of them.
  const failed = Promise.race(logins.map((each) => each.failed))
  failed.catch(() => undefined)
  // The requests for all channels leave at once; each goes on by itself.
  const opening = Array.from({ length: options.channels }, (_, channel) =>
    openChannel(logins[channel % logins.length]!.client, { ...own, channel }),
  )
  let opened: Awaited<ReturnType<typeof openChannel>>[]
  try {
    opened = await Promise.race([Promise.all(opening), failed])
  } catch (error) {
    for (const { socket } of logins) socket.destroy()
    await Promise.allSettled(opening)
    throw error
  }
  const connections = logins.map(({ socket }) => ({
    localAddress: socket.localAddress ?? '',
    localPort: socket.localPort ?? 0,
    remoteAddress: socket.remoteAddress ?? '',
    remotePort: socket.remotePort ?? 0,
  }))
  return {
    link: {
      channels: opened.map(({ channel }) => channel),
      connections,
      dispose: () => {
        for (const { client, socket } of logins) endClient(client, socket)
      },
      failed,
    },
    answer: opened[0]!.answer,
  }
}

/** Says goodbye, and does not wait for ever until the far end has heard it. */
function endClient(client: Client, socket: Socket): void {
  client.end()
  const timer = setTimeout(() => socket.destroy(), CHANNEL_END_MS)
  timer.unref()
  socket.once('close', () => clearTimeout(timer))
}

function login(options: DialOptions, socket: Socket): Promise<Login> {
  const expected = parseHostKey(options.hostKey)
  const client = new ssh2.Client()
  let hostKeyError: RefusedError | undefined
  let fail: (error: Error) => void = () => undefined
  const failed = new Promise<never>((_, reject) => {
    fail = reject
  })
  failed.catch(() => undefined)
  return new Promise((resolve, reject) => {
    const lose = (error: Error): void => {
      const reason = hostKeyError ?? explain(error, options)
      reject(reason)
      fail(reason)
    }
    client.on('ready', () => resolve({ client, socket, failed }))
    client.on('error', lose)
    client.on('close', () => lose(new LostError('the connection was closed')))
    // ssh2 deciphers and hands over what it is given, so the socket is where it can wait. It never pauses it itself.
    const goOn = (): void => void socket.resume()
    socket.on('data', () => {
      if (options.kind === 'control' || !loopTurn.over) return
      socket.pause()
      loopTurn.later(goOn)
    })
    try {
      client.connect({
        sock: socket,
        username: options.user,
        privateKey: options.privateKey,
        authHandler: ['publickey'],
        algorithms: { serverHostKey: hostKeyAlgorithms(expected.type) },
        hostVerifier: (key: Buffer) => {
          if (key.equals(expected.blob)) return true
          hostKeyError = new RefusedError(
            `the host key ${fingerprint(key)} is not the one in the config, ${fingerprint(expected.blob)}`,
          )
          return false
        },
        readyTimeout: 0,
        keepaliveInterval: options.pingIntervalMs ?? PING_INTERVAL_MS,
        keepaliveCountMax: Math.ceil(
          (options.silenceMs ?? SILENCE_MS_MAX) / (options.pingIntervalMs ?? PING_INTERVAL_MS),
        ),
      })
    } catch (error) {
      // ssh2 throws for a private key that it cannot read.
      reject(new RefusedError(errorText(error), { cause: error }))
    }
  })
}

/** One exec channel through the hello. What the forced command said on stderr explains a failure best. */
async function openChannel(client: Client, own: Hello): Promise<{ channel: FrameChannel; answer: Hello }> {
  const stream = await new Promise<ClientChannel>((resolve, reject) => {
    // The forced command runs whatever is asked for; a key without one finds out here.
    client.exec('swam-peer', (error, channel) => (error === undefined ? resolve(channel) : reject(error)))
  })
  let said = ''
  let status: number | null | undefined
  const exited = new Promise<void>((resolve) => {
    stream.on('exit', (code) => {
      status = code
      resolve()
    })
    stream.on('close', () => resolve())
  })
  stream.stderr.on('data', (bytes: Buffer) => {
    if (said.length < PEER_STDERR_BYTES_MAX) said += bytes.toString('utf8')
  })
  stream.stderr.on('error', () => undefined)
  const channel = new FrameChannel(stream)
  try {
    return { channel, answer: await greet(channel, own) }
  } catch (error) {
    if (error instanceof LostError) await exited
    channel.close()
    if (status === undefined || status === null) throw error
    const line = said.trim().replace(/\p{C}+/gu, ' ')
    const text = `the far end's command ended with status ${status}: ${line || 'it said nothing'}`
    if (status === NO_DAEMON_STATUS) throw new AbsentError(text, { cause: error })
    throw new RefusedError(text, { cause: error })
  }
}

function explain(error: Error, options: DialOptions): Error {
  if ((error as { level?: string }).level === 'client-authentication') {
    return new RefusedError(`the far sshd does not take this key for user ${options.user}`, { cause: error })
  }
  if (/no matching host key format/i.test(error.message)) {
    return new RefusedError(
      `the far sshd has no host key of the type in the config (${options.hostKey.split(' ')[0]})`,
      {
        cause: error,
      },
    )
  }
  return error instanceof LostError ? error : new LostError(error.message, { cause: error })
}

function parseHostKey(line: string): { type: string; blob: Buffer } {
  const [type, base64] = line.trim().split(/\s+/)
  const blob = Buffer.from(base64 ?? '', 'base64')
  // The blob repeats its type: a line that was cut or mixed up is seen here.
  const named = blob.length > 4 ? blob.toString('latin1', 4, 4 + Math.min(blob.readUInt32BE(0), 64)) : ''
  if (type === undefined || named !== type) {
    throw new RefusedError(`the host key in the config is not one: ${JSON.stringify(line.slice(0, 40))}`)
  }
  return { type, blob }
}

function hostKeyAlgorithms(type: string): ssh2.ServerHostKeyAlgorithm[] {
  return (type === 'ssh-rsa' ? ['rsa-sha2-512', 'rsa-sha2-256'] : [type]) as ssh2.ServerHostKeyAlgorithm[]
}

function fingerprint(key: Buffer): string {
  return `SHA256:${createHash('sha256').update(key).digest('base64').replace(/=+$/, '')}`
}
