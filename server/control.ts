/**
 * The local sockets of a daemon (control.sock for people, hook.sock for root's hook): one JSON line in, one JSON line
 * out, one request a connection. Who may connect is decided by the mode and group of the socket file, which has its
 * mode from the moment it exists. Server and client are both here, so that they cannot disagree.
 * It knows no methods; the daemon hands them in. It listens nowhere but on the path it is given.
 */
import { chown, lstat, readFile, unlink } from 'node:fs/promises'
import { connect, createServer, type Server, type Socket } from 'node:net'
import {
  ConfigError,
  errorText,
  LostError,
  ProtocolError,
  RefusedError,
  SwamError,
  TimeoutError,
} from '../lib/core/errors.ts'
import {
  CONTROL_ANSWER_BYTES_MAX,
  CONTROL_ANSWER_DEADLINE_MS,
  CONTROL_CONNECTIONS_MAX,
  CONTROL_REQUEST_DEADLINE_MS,
  SOCKET_PATH_BYTES_MAX,
} from '../lib/core/limits.ts'

export const CONTROL_VERSION: number = 1

/** An answer that is JSON already: a long one is not parsed and written again in one turn of the event loop. */
export class JsonText {
  readonly text: string
  constructor(text: string) {
    this.text = text
  }
}

/** `signal` is aborted when the client closes its side before the answer is ready (the answer is sent all the same). */
export type ControlHandler = (params: unknown, signal: AbortSignal) => Promise<unknown>

export interface ControlServerOptions {
  readonly path: string
  /** Of the socket file, for example 0o660. */
  readonly mode: number
  /** Name of the group that owns the socket file. */
  readonly group?: string
  readonly handlers: Readonly<Record<string, ControlHandler>>
  readonly requestBytesMax: number
  /** For methods without parameters, whose answer is the same for all who ask at once: those that are being made. */
  readonly making?: Map<string, Promise<Buffer>>
  /** Time a client has to send its request line. */
  readonly requestMs?: number
  /** Time a client has to read its answer. */
  readonly readMs?: number
  /** Failures of single clients; they never stop the server. */
  readonly onError?: (error: unknown) => void
}

export interface ControlServer extends AsyncDisposable {
  readonly path: string
  /** Ends all connections and removes the socket file. Idempotent. */
  close(): Promise<void>
}

export async function serveControl(options: ControlServerOptions): Promise<ControlServer> {
  const { path } = options
  if (Buffer.byteLength(path) > SOCKET_PATH_BYTES_MAX) {
    throw new ConfigError(`${path}: expected a socket path of at most ${SOCKET_PATH_BYTES_MAX} bytes`)
  }
  const groupId = options.group === undefined ? undefined : await groupIdOf(options.group)
  await removeStale(path)
  const sockets = new Set<Socket>()
  // Half open: a client that sends its line and shuts down its side still gets the answer.
  const server = createServer({ allowHalfOpen: true }, (socket) => {
    sockets.add(socket)
    socket.on('close', () => sockets.delete(socket))
    serveOne(socket, options)
  })
  server.maxConnections = CONTROL_CONNECTIONS_MAX
  await listen(server, path, options.mode)
  if (groupId !== undefined) {
    try {
      await chown(path, -1, groupId)
    } catch (error) {
      server.close()
      throw new ConfigError(`${path}: cannot give the socket to group ${options.group}: ${errorText(error)}`)
    }
  }
  let closing: Promise<void> | undefined
  const close = (): Promise<void> => {
    closing ??= (async () => {
      // libuv removes the socket file by itself.
      const ended = new Promise<void>((resolve) => server.close(() => resolve()))
      for (const socket of sockets) socket.destroy()
      await ended
    })()
    return closing
  }
  return { path, close, [Symbol.asyncDispose]: close }
}

/** The daemon said no; `answerCode` is the code of the error there. */
export class AnswerError extends RefusedError {
  readonly answerCode: string
  constructor(answerCode: string, message: string) {
    super(message)
    this.answerCode = answerCode
  }
}

export interface ControlCallOptions {
  readonly timeoutMs?: number
  readonly answerBytesMax?: number
}

/**
 * Throws LostError when nobody listens, AnswerError when the daemon said no, TimeoutError, ProtocolError; a failure of
 * connect keeps its system error as `cause` (EACCES tells "not allowed" from "not reachable").
 */
export async function callControl(
  path: string,
  method: string,
  params: unknown,
  options: ControlCallOptions = {},
): Promise<unknown> {
  const timeoutMs = options.timeoutMs ?? CONTROL_ANSWER_DEADLINE_MS
  const socket = connect({ path, allowHalfOpen: true })
  try {
    const line = await new Promise<string>((resolve, reject) => {
      const timer = setTimeout(
        () => reject(new TimeoutError(`${path}: no answer to ${method} within ${timeoutMs} ms`)),
        timeoutMs,
      )
      socket.on('close', () => clearTimeout(timer))
      // Our side stays open: its end tells the daemon that nobody waits any more.
      socket.on('connect', () =>
        socket.write(`${JSON.stringify({ version: CONTROL_VERSION, method, params })}\n`),
      )
      readLine(
        socket,
        options.answerBytesMax ?? CONTROL_ANSWER_BYTES_MAX,
        `${path}: the answer to ${method}`,
      ).then(resolve, reject)
    })
    return answerOf(line, `${path}: ${method}`)
  } finally {
    socket.destroy()
  }
}

function answerOf(line: string, place: string): unknown {
  const answer = parseObject(line, place)
  if (answer['version'] !== CONTROL_VERSION) {
    throw new ProtocolError(
      `${place}: expected version ${CONTROL_VERSION}, found ${JSON.stringify(answer['version'])}`,
    )
  }
  if (answer['ok'] === true) return answer['result'] ?? null
  const message = answer['message']
  const code = answer['code']
  throw new AnswerError(
    typeof code === 'string' ? code : 'SWAM_INTERNAL',
    typeof message === 'string' ? message : `${place}: failed without a reason`,
  )
}

function serveOne(socket: Socket, options: ControlServerOptions): void {
  const gone = new AbortController()
  const deadline = setTimeout(() => socket.destroy(), options.requestMs ?? CONTROL_REQUEST_DEADLINE_MS)
  socket.on('end', () => gone.abort())
  socket.on('close', () => {
    clearTimeout(deadline)
    gone.abort()
  })
  const answer = async (): Promise<Buffer> => {
    const line = await readLine(socket, options.requestBytesMax, `${options.path}: a request`)
    clearTimeout(deadline)
    const request = parseObject(line, `${options.path}: a request`)
    const method = request['method']
    if (request['version'] !== CONTROL_VERSION || typeof method !== 'string') {
      throw new ProtocolError(`${options.path}: expected a request {"version":${CONTROL_VERSION},"method":…}`)
    }
    const handler = Object.hasOwn(options.handlers, method) ? options.handlers[method] : undefined
    if (handler === undefined) throw new RefusedError(`unknown method ${JSON.stringify(method.slice(0, 64))}`)
    const make = async (): Promise<Buffer> => {
      const result = (await handler(request['params'], gone.signal)) ?? null
      if (!(result instanceof JsonText)) return lineOf({ version: CONTROL_VERSION, ok: true, result })
      return Buffer.from(`{"version":${CONTROL_VERSION},"ok":true,"result":${result.text}}\n`, 'utf8')
    }
    if (options.making === undefined) return await make()
    // Who asks while an answer is being made gets that one: many who ask cost as much as one.
    const made = options.making.get(method) ?? make()
    options.making.set(method, made)
    return await made.finally(() => options.making?.delete(method))
  }
  answer()
    .catch((error: unknown) => {
      if (!(error instanceof LostError)) options.onError?.(error)
      const code = error instanceof SwamError ? error.code : 'SWAM_INTERNAL'
      return lineOf({ version: CONTROL_VERSION, ok: false, code, message: errorText(error) })
    })
    .then((line) => {
      if (socket.destroyed) return
      // An answer that nobody reads is not kept.
      const unread = setTimeout(() => socket.destroy(), options.readMs ?? CONTROL_ANSWER_DEADLINE_MS)
      socket.on('close', () => clearTimeout(unread))
      socket.end(line, () => socket.destroySoon())
    })
    .catch((error: unknown) => options.onError?.(error))
}

function lineOf(answer: object): Buffer {
  return Buffer.from(`${JSON.stringify(answer)}\n`, 'utf8')
}

/** The bytes before the first newline. Holds at most `bytesMax`; whatever follows the line is ignored. */
function readLine(socket: Socket, bytesMax: number, what: string): Promise<string> {
  return new Promise((resolve, reject) => {
    const pieces: Buffer[] = []
    let bytes = 0
    let done = false
    const finish = (act: () => void): void => {
      if (done) return
      done = true
      pieces.length = 0
      // Kept flowing, so that a close of the other side is noticed while a handler works.
      act()
    }
    socket.on('data', (piece: Buffer) => {
      if (done) return
      const end = piece.indexOf(0x0a)
      const used = end < 0 ? piece : piece.subarray(0, end)
      bytes += used.length
      if (bytes > bytesMax) {
        finish(() =>
          reject(new ProtocolError(`${what}: expected at most ${bytesMax} bytes before a newline`)),
        )
        return
      }
      pieces.push(used)
      if (end >= 0) {
        const line = Buffer.concat(pieces).toString('utf8')
        finish(() => resolve(line))
      }
    })
    const lost = (error?: Error): void =>
      finish(() => {
        const why = error === undefined ? 'the connection ended first' : errorText(error)
        reject(new LostError(`${what}: ${why}`, error === undefined ? {} : { cause: error }))
      })
    socket.on('end', () => lost())
    socket.on('close', () => lost())
    socket.on('error', lost)
  })
}

function parseObject(line: string, what: string): Record<string, unknown> {
  let value: unknown
  try {
    value = JSON.parse(line)
  } catch (error) {
    throw new ProtocolError(`${what}: expected JSON: ${errorText(error)}`)
  }
  if (typeof value !== 'object' || value === null || Array.isArray(value)) {
    throw new ProtocolError(`${what}: expected a JSON object`)
  }
  return value as Record<string, unknown>
}

function listen(server: Server, path: string, mode: number): Promise<void> {
  return new Promise((resolve, reject) => {
    server.once('error', reject)
    // bind() runs inside listen(), so that the file never has more rights than `mode`, not even for a moment.
    const before = process.umask(0o777 & ~mode)
    try {
      server.listen({ path }, () => {
        server.removeListener('error', reject)
        resolve()
      })
    } finally {
      process.umask(before)
    }
  })
}

/**
 * A socket file that nobody listens on is removed; a live one, or any other file, is a refusal.
 * @throws ConfigError
 */
export async function removeStale(path: string): Promise<void> {
  const found = await lstat(path).catch((error: NodeJS.ErrnoException) => {
    if (error.code === 'ENOENT') return undefined
    throw error
  })
  if (found === undefined) return
  if (!found.isSocket())
    throw new ConfigError(`${path}: expected a socket or nothing, found another kind of file`)
  const live = await new Promise<boolean>((resolve, reject) => {
    const probe = connect({ path })
    probe.on('connect', () => {
      probe.destroy()
      resolve(true)
    })
    probe.on('error', (error: NodeJS.ErrnoException) => {
      // EAGAIN: somebody listens and its queue is full.
      if (error.code === 'ECONNREFUSED' || error.code === 'ENOENT') resolve(false)
      else if (error.code === 'EAGAIN') resolve(true)
      else reject(error)
    })
  })
  if (live)
    throw new ConfigError(`${path}: another swamd listens here; stop it, or give this one another runDir`)
  await unlink(path).catch((error: NodeJS.ErrnoException) => {
    if (error.code !== 'ENOENT') throw error
  })
}

async function groupIdOf(group: string): Promise<number> {
  const text = await readFile('/etc/group', 'utf8')
  for (const line of text.split('\n')) {
    const [name, , id] = line.split(':')
    if (name === group && id !== undefined && /^\d+$/.test(id)) return Number(id)
  }
  throw new ConfigError(`/etc/group: expected a group named ${group}`)
}
