/**
 * NBD throughput in MiB/s: our server against nbdkit's memory plugin, both fed by nbdcopy over one connection in the same
 * run, alternating; and our client writing to nbdkit. What arrived is read back and its digest compared each time: a
 * figure without equal digests is an error. Wall time on a machine with other work is noise, so the processor time of
 * our side is given too (MiB for each second of it); the best of each is kept.
 */
import { createHash, randomBytes } from 'node:crypto'
import { once } from 'node:events'
import { open } from 'node:fs/promises'
import { createServer } from 'node:net'
import { join } from 'node:path'
import type { BlockDevice } from '../../lib/block/device.ts'
import { MemoryDevice } from '../../lib/block/memory.ts'
import { negotiateNbd } from '../../lib/nbd/client.ts'
import { serveNbd } from '../../lib/nbd/server.ts'
import { dial, inFolder, succeed, withServer } from '../interop/nbd-peers.ts'

const MIB = 1024 * 1024
const TOTAL_BYTES = 512 * MIB
const ROUNDS = 3
const REQUESTS: readonly (readonly [bytes: number, inFlight: number])[] = [
  [MIB, 16],
  [65536, 64],
]

interface Figure {
  wall: number
  cpu: number
}

export async function run(): Promise<object> {
  return await inFolder(async (folder) => {
    const source = join(folder, 'source.img')
    const sha256 = await fill(source)
    const figures: Record<string, Figure> = {}
    for (let round = 0; round < ROUNDS; round++) {
      for (const [bytes, inFlight] of REQUESTS) {
        const size = `${bytes / 1024}K`
        const copy = ['--connections=1', `--request-size=${bytes}`, `--requests=${inFlight}`, source]
        keep(figures, `ours, nbdcopy ${size}`, await intoOurs(folder, copy, sha256))
        keep(figures, `nbdkit, nbdcopy ${size}`, await intoNbdkit(folder, copy, sha256))
        keep(figures, `nbdkit, our client ${size}`, await clientIntoNbdkit(folder, bytes, inFlight))
      }
    }
    return { bytes: TOTAL_BYTES, unit: 'MiB/s', figures }
  })
}

function keep(figures: Record<string, Figure>, name: string, found: Figure): void {
  const best = figures[name] ?? { wall: 0, cpu: 0 }
  figures[name] = { wall: Math.max(best.wall, found.wall), cpu: Math.max(best.cpu, found.cpu) }
}

async function fill(path: string): Promise<string> {
  const file = await open(path, 'wx')
  const hash = createHash('sha256')
  for (let at = 0; at < TOTAL_BYTES; at += MIB) {
    const piece = randomBytes(MIB)
    hash.update(piece)
    await file.write(piece)
  }
  await file.close()
  return hash.digest('hex')
}

async function measured(work: () => Promise<unknown>): Promise<Figure> {
  const cpuBefore = process.cpuUsage()
  const start = performance.now()
  await work()
  const wallMs = performance.now() - start
  const cpu = process.cpuUsage(cpuBefore)
  const mib = TOTAL_BYTES / MIB
  const cpuSeconds = (cpu.user + cpu.system) / 1e6
  return { wall: Math.round((mib * 1000) / wallMs), cpu: Math.round(mib / cpuSeconds) }
}

async function intoOurs(folder: string, copy: readonly string[], sha256: string): Promise<Figure> {
  const socket = join(folder, 'ours.sock')
  const device = new MemoryDevice({ size: TOTAL_BYTES })
  const exports = { list: async () => ['disk'], open: async () => device }
  const connections: Promise<void>[] = []
  const server = createServer((stream) => void connections.push(serveNbd(stream, { exports })))
  server.listen(socket)
  await once(server, 'listening')
  try {
    const figure = await measured(() => succeed('nbdcopy', [...copy, `nbd+unix:///disk?socket=${socket}`]))
    await Promise.all(connections)
    await expectDigest(device, sha256, 'our server')
    return figure
  } finally {
    server.close()
  }
}

/** Only the wall time means something here: the work is done in other processes. */
async function intoNbdkit(folder: string, copy: readonly string[], sha256: string): Promise<Figure> {
  const socket = join(folder, 'nbdkit.sock')
  let figure: Figure = { wall: 0, cpu: 0 }
  await withServer('nbdkit', nbdkit(socket), socket, async () => {
    figure = await measured(() => succeed('nbdcopy', [...copy, `nbd+unix:///?socket=${socket}`]))
    const device = await (await negotiateNbd(await dial(socket))).go('')
    await expectDigest(device, sha256, 'nbdkit')
    await device.close()
  })
  return { wall: figure.wall, cpu: 0 }
}

async function clientIntoNbdkit(folder: string, bytes: number, inFlight: number): Promise<Figure> {
  const socket = join(folder, 'nbdkit-client.sock')
  const pieces = Array.from({ length: 16 }, () => randomBytes(bytes))
  const hash = createHash('sha256')
  for (let at = 0; at < TOTAL_BYTES; at += bytes) hash.update(pieces[(at / bytes) % 16] as Buffer)
  const sha256 = hash.digest('hex')
  let figure: Figure = { wall: 0, cpu: 0 }
  await withServer('nbdkit', nbdkit(socket), socket, async (dialled) => {
    const device = await (await negotiateNbd(await dialled())).go('')
    let next = 0
    const writer = async (): Promise<void> => {
      while (next < TOTAL_BYTES) {
        const at = next
        next += bytes
        await device.write(at, pieces[(at / bytes) % 16] as Buffer)
      }
    }
    figure = await measured(async () => {
      await Promise.all(Array.from({ length: inFlight }, writer))
      await device.flush()
    })
    await expectDigest(device, sha256, 'nbdkit')
    await device.close()
  })
  return figure
}

function nbdkit(socket: string): string[] {
  return ['--foreground', '--unix', socket, 'memory', `${TOTAL_BYTES}`, 'allocator=malloc']
}

async function expectDigest(device: BlockDevice, sha256: string, where: string): Promise<void> {
  const hash = createHash('sha256')
  for (let at = 0; at < TOTAL_BYTES; at += MIB) hash.update(await device.read(at, MIB))
  const found = hash.digest('hex')
  if (found !== sha256) throw new Error(`${where} holds ${found}, expected ${sha256}`)
}
