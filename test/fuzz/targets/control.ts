/** The daemon's local sockets: request lines of people and of the hook, what the hook says, and answers to the CLI. */
import assert from 'node:assert/strict'
import { once } from 'node:events'
import { mkdirSync, mkdtempSync, rmSync } from 'node:fs'
import { connect, createServer, type Server, type Socket } from 'node:net'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import type { Config } from '../../../config/schema.ts'
import { LostError, ProtocolError, RefusedError, SwamError, TimeoutError } from '../../../lib/core/errors.ts'
import { HOOK_REQUEST_BYTES_MAX } from '../../../lib/core/limits.ts'
import { silentLog } from '../../../lib/core/log.ts'
import { imageToCreate } from '../../../server/cli/create-image.ts'
import { type ControlServer, callControl, serveControl } from '../../../server/control.ts'
import { History } from '../../../server/history.ts'
import { Params } from '../../../server/params.ts'
import { Site } from '../../../server/site.ts'
import { TargetSide } from '../../../server/target-side.ts'
import { allowing } from '../checks.ts'
import type { FuzzTarget } from '../target.ts'

const WORDS = [
  ...['{"version":1,"method":"hook","params":', '"guest":"vm"', '"op":"migrate"', '"sub":"begin"', '"xml":"'],
  ...['"op":"started"', '"ports":[', '{"address":"::","port":49152}', '"method":"hookReport"', '"images":[]'],
  ...['"__proto__":', '"method":"toString"', '\\u0000', '\\ud800', '\n', '1e999', '-0', '[[[[', 'null'],
].map((word) => Buffer.from(word))

let folder: string | undefined

function place(): string {
  if (folder === undefined) {
    const made = mkdtempSync(join(tmpdir(), 'swam-fuzz-'))
    folder = made
    mkdirSync(join(made, 'incoming'))
    process.on('exit', () => rmSync(made, { recursive: true, force: true }))
  }
  return folder
}

/** A destination without peers: what its hook is told is parsed, nothing is dialed. */
function targetSide(): TargetSide {
  const config = {
    strict: true,
    runDir: place(),
    images: [],
    peers: [],
    migrationPorts: [49152, 49215],
    limits: { wanMbit: 0, windowMiB: 256, indexMiB: 256, scanMiBps: 0 },
  } as unknown as Config
  const kept = new History(place())
  kept.append = async () => undefined
  return new TargetSide(new Site(config, silentLog, kept), [], {} as never, {} as never)
}

let server: ControlServer | undefined
const failures: unknown[] = []

export const controlRequest: FuzzTarget = {
  name: 'control-request',
  inputBytesMax: 16_384,
  allocationBytesMax: HOOK_REQUEST_BYTES_MAX,
  dictionary: WORDS,
  async close() {
    await server?.close()
    server = undefined
  },
  async run(input) {
    failures.length = 0
    const side = targetSide()
    server ??= await serveControl({
      path: join(place(), 'hook.sock'),
      mode: 0o600,
      requestBytesMax: 8192,
      onError: (error) => failures.push(error),
      handlers: {
        hook: (params) => side.hook(params),
        hookReport: (params) => side.hookReport(params),
        echo: async (params) => params,
      },
    })
    const socket = connect({ path: server.path })
    socket.on('error', () => undefined)
    let answer = ''
    socket.on('data', (bytes: Buffer) => (answer += bytes.toString('utf8')))
    socket.end(input)
    await once(socket, 'close')
    for (const failure of failures) if (!(failure instanceof SwamError)) throw failure
    // A line that came whole has one line as its answer.
    if (input.includes(0x0a)) assert.match(answer, /^\{"version":1,.*\}\n$/)
  },
}

let liar: { readonly server: Server; readonly path: string; bytes: Buffer } | undefined

async function lying(): Promise<NonNullable<typeof liar>> {
  if (liar !== undefined) return liar
  const path = join(place(), 'liar.sock')
  const made = createServer((socket: Socket) => {
    socket.on('error', () => undefined).resume()
    socket.end(liar?.bytes ?? '')
  })
  made.listen({ path })
  await once(made, 'listening')
  liar = { server: made, path, bytes: Buffer.alloc(0) }
  return liar
}

export const controlAnswer: FuzzTarget = {
  name: 'control-answer',
  inputBytesMax: 16_384,
  allocationBytesMax: 65_536,
  dictionary: [...WORDS, Buffer.from('"ok":true,"result":'), Buffer.from('"ok":false,"code":"X","message":')],
  async close() {
    liar?.server.close()
    liar = undefined
  },
  async run(input) {
    const other = await lying()
    other.bytes = input
    const answer = await callControl(other.path, 'status', null, { answerBytesMax: 8192 }).catch(
      (error: unknown) => {
        const known = [LostError, ProtocolError, RefusedError, TimeoutError]
        if (!known.some((one) => error instanceof one)) throw error
      },
    )
    // The daemon is not root, the hook is: what it is told to create is checked.
    const image = allowing([ProtocolError, RefusedError], () => imageToCreate(answer))
    if ('value' in image) assert.ok(image.value.path.startsWith('/') && image.value.size > 0)
  },
}

export const params: FuzzTarget = {
  name: 'params',
  inputBytesMax: 16_384,
  allocationBytesMax: 65_536,
  dictionary: WORDS,
  run(input) {
    let value: unknown
    try {
      value = JSON.parse(input.toString('utf8'))
    } catch {
      return
    }
    const made = allowing([ProtocolError], () => new Params('fuzz', value))
    if (!('value' in made)) return
    const given = made.value
    const looks: (() => unknown)[] = [
      () => given.text('guest'),
      () => given.optionalText('error', 10),
      () => given.uuid('uuid'),
      () => given.port('port'),
      () => given.ports('ports', 8),
      () => given.list('images', 8),
      () => given.flag('found'),
      () => given.optionalInteger('capacity', 0, 2 ** 53 - 1),
      () => given.exports('exports'),
    ]
    for (const look of looks) allowing([ProtocolError], look)
    const ports = allowing([ProtocolError], () => given.ports('ports', 8))
    if ('value' in ports) assert.ok(ports.value.every((port) => port >= 1 && port <= 65_535))
  },
}
