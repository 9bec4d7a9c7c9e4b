/** The BlockDevice contract on every kind of device that needs no foreign program. */

import { once } from 'node:events'
import { mkdtemp, rm } from 'node:fs/promises'
import { connect, createServer } from 'node:net'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { duplexPair } from 'node:stream'
import type { BlockDevice } from '../../lib/block/device.ts'
import { FaultyDevice } from '../../lib/block/faulty.ts'
import { openFileDevice } from '../../lib/block/file.ts'
import { MemoryDevice } from '../../lib/block/memory.ts'
import { negotiateNbd } from '../../lib/nbd/client.ts'
import { serveNbd } from '../../lib/nbd/server.ts'
import { blockDeviceContract, type MadeDevice } from './block-device.ts'

const nothing = async (): Promise<void> => {}

async function overPair(inner: BlockDevice, structuredReplies: boolean): Promise<MadeDevice> {
  const [near, far] = duplexPair()
  // As with a socket: who is gone does not keep the other one waiting for its end.
  near.once('close', () => far.destroy())
  const served = serveNbd(far, { exports: { list: async () => ['disk'], open: async () => inner } })
  const negotiation = await negotiateNbd(near, { structuredReplies })
  return { device: await negotiation.go('disk'), cleanup: () => served }
}

blockDeviceContract('memory', async (size) => ({ device: new MemoryDevice({ size }), cleanup: nothing }))

blockDeviceContract('memory, minimum block 4096', async (size) => ({
  device: new MemoryDevice({ size, blockSizes: { minimum: 4096, preferred: 65536, maximum: 1024 * 1024 } }),
  cleanup: nothing,
}))

blockDeviceContract('faulty without rules', async (size) => ({
  device: new FaultyDevice(new MemoryDevice({ size }), []),
  cleanup: nothing,
}))

blockDeviceContract('file', async (size) => {
  const folder = await mkdtemp(join(tmpdir(), 'swam-file-'))
  const device = await openFileDevice(join(folder, 'disk.img'), { createBytes: size })
  return { device, cleanup: () => rm(folder, { recursive: true }) }
})

blockDeviceContract('NBD over a pair of streams', (size) => overPair(new MemoryDevice({ size }), true))

blockDeviceContract('NBD with simple replies', (size) => overPair(new MemoryDevice({ size }), false))

blockDeviceContract('NBD, minimum block 4096, payloads up to 128 KiB', (size) =>
  overPair(new MemoryDevice({ size, blockSizes: { minimum: 4096, preferred: 4096, maximum: 131072 } }), true),
)

blockDeviceContract('NBD over a unix socket', async (size) => {
  const folder = await mkdtemp(join(tmpdir(), 'swam-nbd-'))
  const path = join(folder, 'nbd.sock')
  const served: Promise<void>[] = []
  const server = createServer((socket) => {
    const exports = { list: async () => ['disk'], open: async () => new MemoryDevice({ size }) }
    served.push(serveNbd(socket, { exports, requestsMax: 8, inFlightBytesMax: 256 * 1024 }))
  })
  server.listen(path)
  await once(server, 'listening')
  const device = await (await negotiateNbd(connect(path))).go('disk')
  return {
    device,
    cleanup: async () => {
      await Promise.all(served)
      server.close()
      await rm(folder, { recursive: true })
    },
  }
})
