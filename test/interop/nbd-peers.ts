/**
 * Real NBD peers for the interop tests: runs a foreign program to its end, or as a server for the time of a test, and
 * serves our own devices on a unix socket. A program that is missing is a failure, never a skip. Everything that was
 * started here is ended here, by its own process id.
 */
import { type ChildProcess, spawn } from 'node:child_process'
import { once } from 'node:events'
import { mkdtemp, rm } from 'node:fs/promises'
import { connect, createServer, type Socket } from 'node:net'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import type { BlockDevice } from '../../lib/block/device.ts'
import { serveNbd } from '../../lib/nbd/server.ts'

const CREATE_TRIES = 10

export interface Outcome {
  readonly code: number | null
  readonly stdout: string
  readonly stderr: string
}

/** The peers of the distribution, not what else may stand first in somebody's PATH (nbdsh needs the system's Python). */
const ENVIRONMENT = { ...process.env, PATH: '/usr/bin:/bin:/usr/sbin:/sbin', LC_ALL: 'C' }

export async function run(command: string, args: readonly string[], input = ''): Promise<Outcome> {
  const child = spawn(command, args, { env: ENVIRONMENT, stdio: ['pipe', 'pipe', 'pipe'] })
  const out: Buffer[] = []
  const err: Buffer[] = []
  child.stdout.on('data', (chunk: Buffer) => out.push(chunk))
  child.stderr.on('data', (chunk: Buffer) => err.push(chunk))
  // One that ends without reading it, losetup for one.
  child.stdin.on('error', () => undefined)
  child.stdin.end(input)
  // A program that cannot be started rejects here.
  const [code] = (await once(child, 'close')) as [number | null]
  return { code, stdout: Buffer.concat(out).toString(), stderr: Buffer.concat(err).toString() }
}

/** Runs a program that must succeed; gives what it printed. */
export async function succeed(command: string, args: readonly string[], input = ''): Promise<string> {
  const outcome = await run(command, args, input)
  if (outcome.code !== 0) {
    throw new Error(`${command} ${args.join(' ')}: exit ${outcome.code}\n${outcome.stdout}${outcome.stderr}`)
  }
  return outcome.stdout
}

/** `qemu-img create`. For an encrypted image QEMU now and then measures no processor time at all, and gives up. */
export async function createImage(words: readonly string[]): Promise<void> {
  for (let tries = 1; ; tries++) {
    const { code, stderr } = await run('qemu-img', ['create', '-q', ...words])
    if (code === 0) return
    if (tries === CREATE_TRIES || !stderr.includes('accurate CPU usage'))
      throw new Error(`qemu-img create ${words.join(' ')}: exit ${code}\n${stderr}`)
  }
}

/** A folder for the time of one test. */
export async function inFolder<Result>(work: (folder: string) => Promise<Result>): Promise<Result> {
  const folder = await mkdtemp(join(tmpdir(), 'swam-interop-'))
  try {
    return await work(folder)
  } finally {
    await rm(folder, { recursive: true, force: true })
  }
}

export interface Served {
  readonly folder: string
  readonly socket: string
  /** For libnbd and QEMU alike. */
  readonly uri: string
  /** How each connection that is over ended: undefined, or what serveNbd rejected with. */
  readonly ends: unknown[]
}

/** Our server with one export, `disk`, while `work` runs. */
export async function serving(device: BlockDevice, work: (served: Served) => Promise<void>): Promise<void> {
  await inFolder(async (folder) => {
    const socket = join(folder, 'nbd.sock')
    const ends: unknown[] = []
    const connections: Promise<void>[] = []
    const exports = {
      list: async () => ['disk'],
      open: async (name: string) => (name === 'disk' ? unclosing(device) : undefined),
      description: () => 'a disk of the tests',
    }
    const server = createServer((connection) => {
      connections.push(
        serveNbd(connection, { exports }).then(
          () => void ends.push(undefined),
          (error: unknown) => void ends.push(error),
        ),
      )
    })
    server.listen(socket)
    await once(server, 'listening')
    try {
      await work({ folder, socket, uri: `nbd+unix:///disk?socket=${socket}`, ends })
      await Promise.all(connections)
    } finally {
      server.close()
      await device.close()
    }
  })
}

/** The device outlives its connections: several peers follow each other in one test. */
function unclosing(device: BlockDevice): BlockDevice {
  return new Proxy(device, {
    get(target, property) {
      if (property === 'close') return async () => {}
      const value: unknown = Reflect.get(target, property, target)
      return typeof value === 'function' ? value.bind(target) : value
    },
  })
}

/** A foreign server on a unix socket while `work` runs; it must create the socket within ten seconds. */
export async function withServer(
  command: string,
  args: readonly string[],
  path: string,
  work: (dial: () => Promise<Socket>, kill: () => void) => Promise<void>,
): Promise<void> {
  // nbdkit leaves its socket behind, and then refuses to start.
  await rm(path, { force: true })
  const child = spawn(command, args, { env: ENVIRONMENT, stdio: ['ignore', 'ignore', 'pipe'] })
  let stderr = ''
  child.stderr.on('data', (chunk: Buffer) => (stderr += chunk.toString()))
  const gone = exit(child)
  const sockets: Socket[] = []
  const dialAgain = async (): Promise<Socket> => {
    const socket = await dial(path)
    sockets.push(socket)
    return socket
  }
  try {
    // The connection that showed the server to be up is the first one given out: `nbd-server -d` takes no second.
    let first: Socket | undefined = await dialUntil(
      path,
      gone,
      () => `${command} ${args.join(' ')}: ${stderr}`,
    )
    sockets.push(first)
    await work(
      async () => {
        const connection = first ?? (await dialAgain())
        first = undefined
        return connection
      },
      () => void child.kill('SIGKILL'),
    )
  } finally {
    // nbdkit waits for its connections to end before it obeys.
    for (const socket of sockets) socket.destroy()
    child.kill('SIGTERM')
    await gone
  }
}

function exit(child: ChildProcess): Promise<string> {
  return new Promise((resolve) => {
    child.once('error', (error) => resolve(error.message))
    child.once('exit', (code, signal) => resolve(`exit ${code ?? signal}`))
  })
}

export async function dial(path: string): Promise<Socket> {
  const socket = connect(path)
  await once(socket, 'connect')
  return socket
}

/** Waits for the server by dialling. */
async function dialUntil(path: string, gone: Promise<string>, what: () => string): Promise<Socket> {
  let over: string | undefined
  void gone.then((reason) => (over = reason))
  const deadline = Date.now() + 10_000
  for (;;) {
    try {
      return await dial(path)
    } catch (error) {
      if (over !== undefined) throw new Error(`${what()} (${over})`)
      if (Date.now() > deadline) throw new Error(`${what()}: no socket after 10 s`, { cause: error })
      await new Promise((resolve) => setTimeout(resolve, 20))
    }
  }
}
