/**
 * The whole way of a disk with real peers at both ends and no libvirt: qemu-img writes to our NBD server, the engine
 * carries it over a linked pair of bundles, the receiver writes to a real qemu-nbd; then qemu-img compares.
 */
import assert from 'node:assert/strict'
import { type ChildProcess, execFile, spawn } from 'node:child_process'
import { once } from 'node:events'
import { mkdtemp, open, rm } from 'node:fs/promises'
import { connect, createServer } from 'node:net'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { after, before, test } from 'node:test'
import { promisify } from 'node:util'
import { listImages } from '../../lib/catalog/image-files.ts'
import { ImageStock } from '../../lib/catalog/stock.ts'
import { Describer } from '../../lib/chunk/describer.ts'
import { SlabPool } from '../../lib/chunk/slab.ts'
import { ByteBudget } from '../../lib/core/byte-budget.ts'
import { MIB } from '../../lib/core/units.ts'
import { DiskAccount } from '../../lib/engine/account.ts'
import { DiskLink } from '../../lib/engine/link.ts'
import { DiskReceiver } from '../../lib/engine/receiver.ts'
import { DiskSender } from '../../lib/engine/sender.ts'
import { StockSource } from '../../lib/engine/stock-source.ts'
import { negotiateNbd } from '../../lib/nbd/client.ts'
import { serveNbd } from '../../lib/nbd/server.ts'
import { bundlePair } from '../../lib/peer/memory.ts'

const run = promisify(execFile)
let dir = ''
let describer: Describer

before(async () => {
  dir = await mkdtemp(join(tmpdir(), 'swam-pair-'))
  describer = new Describer({ workers: 1 })
})
after(async () => {
  await describer.close()
  await rm(dir, { recursive: true, force: true })
})

async function pattern(path: string, sizeMiB: number, seed: number): Promise<void> {
  const file = await open(path, 'w')
  await file.truncate(sizeMiB * MIB)
  let state = seed
  for (let mib = 0; mib < sizeMiB; mib += 3) {
    const block = Buffer.alloc(2 * MIB - 12288)
    for (let i = 0; i < block.length; i += 4) {
      state = (Math.imul(state, 1664525) + 1013904223) >>> 0
      block.writeUInt32LE((state ^ (state >>> 13)) >>> 0, i)
    }
    await file.write(block, 0, Math.min(block.length, (sizeMiB - mib) * MIB), mib * MIB)
  }
  await file.close()
}

async function empty(path: string, sizeMiB: number): Promise<void> {
  const file = await open(path, 'w')
  await file.truncate(sizeMiB * MIB)
  await file.close()
}

function listening(path: string): Promise<boolean> {
  return new Promise((resolve) => {
    const probe = connect(path)
    probe.once('connect', () => {
      probe.destroy()
      resolve(true)
    })
    probe.once('error', () => resolve(false))
  })
}

interface Ran {
  readonly account: DiskAccount
  readonly wireBytes: number
}

/** Copies `from` to `to` (raw files) through a pair, by `qemu-img convert -n`. */
async function carry(from: string, to: string, images: readonly string[]): Promise<Ran> {
  const socketPath = join(dir, 'far.sock')
  const farQemu: ChildProcess = spawn(
    'qemu-nbd',
    [
      '-f',
      'raw',
      '-x',
      'disk',
      '-k',
      socketPath,
      '--discard=unmap',
      '--detect-zeroes=off',
      '-e',
      '4',
      '-t',
      to,
    ],
    { stdio: ['ignore', 'inherit', 'inherit'] },
  )
  const stock = new ImageStock({ indexBytesMax: 16 * MIB, blockIndexBytesMax: 16 * MIB, imagesMax: 16 })
  try {
    while (!(await listening(socketPath))) {
      assert.equal(farQemu.exitCode, null, 'qemu-nbd ended early')
      await new Promise((resolve) => setTimeout(resolve, 20))
    }
    await stock.refresh(() => listImages(images), new Set([to]))
    while (stock.scanning > 0) await new Promise((resolve) => setTimeout(resolve, 20))

    const { near, far } = await bundlePair({ kind: 'disk' })
    const farSocket = connect(socketPath)
    await once(farSocket, 'connect')
    const device = await (await negotiateNbd(farSocket)).go('disk')
    let receiver: DiskReceiver | undefined
    const farLink: DiskLink = new DiskLink(far, (message) => {
      if (message.type !== 'open') return undefined
      receiver = new DiskReceiver({
        link: farLink,
        disk: message.disk,
        epoch: message.epoch,
        device,
        account: new DiskAccount('disk', device.size),
        sources: [new StockSource(stock, new Set([to]))],
        memory: new ByteBudget({ bytesMax: 64 * MIB }),
        sessionEntriesMax: 10_000,
      })
      void receiver
        .scanTarget()
        .then(() =>
          farLink.send({ type: 'opened', disk: message.disk, epoch: message.epoch, errno: 0, text: '' }, 0),
        )
      return { onMessage: () => undefined, onLost: () => undefined }
    })
    const account = new DiskAccount('disk', device.size)
    const sender = new DiskSender({
      link: new DiskLink(near),
      disk: 0,
      epoch: 1,
      size: device.size,
      blockSizes: device.blockSizes,
      account,
      slabs: new SlabPool({ bytesMax: 256 * MIB }),
      describe: (bytes) => describer.describe(bytes),
      limits: { windowBytes: 128 * MIB, drainMs: 1000, flushDeadlineMs: 2000 },
    })
    await sender.open(1, 'disk')
    const server = createServer((socket) => {
      void serveNbd(socket, { exports: { list: async () => ['disk'], open: async () => sender } }).catch(
        () => undefined,
      )
    })
    const nearPath = join(dir, 'near.sock')
    server.listen(nearPath)
    await once(server, 'listening')
    const url = `nbd+unix:///disk?socket=${nearPath}`
    await run('qemu-img', ['convert', '-n', '-f', 'raw', '-O', 'raw', '-W', '-m', '16', from, url])
    const wireBytes = near.bytesSent + near.bytesReceived
    server.close()
    await near.close()
    return { account, wireBytes }
  } finally {
    await stock.close()
    farQemu.kill('SIGTERM')
    if (farQemu.exitCode === null) await once(farQemu, 'exit')
  }
}

test('qemu-img → our server → engine → our client → qemu-nbd: nothing known, in place, from another image', async () => {
  const source = join(dir, 'source.raw')
  const target = join(dir, 'target.raw')
  await pattern(source, 64, 7)
  await empty(target, 64)

  const first = await carry(source, target, [])
  assert.match(
    (await run('qemu-img', ['compare', '-f', 'raw', '-F', 'raw', source, target])).stdout,
    /identical/,
  )
  assert.ok(first.account.bySource.literal > 30 * MIB, `literal: ${first.account.bySource.literal}`)

  const again = await carry(source, target, [])
  assert.match(
    (await run('qemu-img', ['compare', '-f', 'raw', '-F', 'raw', source, target])).stdout,
    /identical/,
  )
  assert.equal(again.account.bySource.literal, 0)
  assert.ok(again.wireBytes < 200_000, `${again.wireBytes} bytes crossed for an unchanged disk`)

  const images = join(dir, 'images')
  await run('mkdir', [images])
  await run('cp', ['--sparse=always', source, join(images, 'base.raw')])
  await rm(target)
  await empty(target, 64)
  const cloned = await carry(source, target, [images])
  assert.match(
    (await run('qemu-img', ['compare', '-f', 'raw', '-F', 'raw', source, target])).stdout,
    /identical/,
  )
  assert.equal(cloned.account.bySource.literal, 0)
  assert.ok(cloned.account.bySource.chunk > 30 * MIB, JSON.stringify(cloned.account.bySource))
})
