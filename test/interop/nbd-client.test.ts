/**
 * Our NBD client against real servers: qemu-nbd, nbdkit with filters that fail, delay, copy on write and restrict block
 * sizes, and nbd-server of the reference implementation. The commands are spelled out.
 */
import assert from 'node:assert/strict'
import { randomBytes } from 'node:crypto'
import { readFile, truncate, writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import { describe, test } from 'node:test'
import type { BlockDevice } from '../../lib/block/device.ts'
import { LostError, RefusedError } from '../../lib/core/errors.ts'
import { type NbdClientOptions, negotiateNbd } from '../../lib/nbd/client.ts'
import { blockDeviceContract } from '../contract/block-device.ts'
import { inFolder, succeed, withServer } from './nbd-peers.ts'

const MIB = 1024 * 1024
const SIZE = 8 * MIB

const refused =
  (errno: number) =>
  (error: unknown): boolean =>
    error instanceof RefusedError && error.errno === errno

/** A device at nbdkit with the given plugin, filters and parameters. */
async function nbdkit(
  args: readonly string[],
  work: (device: BlockDevice, folder: string) => Promise<void>,
  options: NbdClientOptions = {},
): Promise<void> {
  await inFolder(async (folder) => {
    const socket = join(folder, 'nbdkit.sock')
    await withServer('nbdkit', ['--foreground', '--unix', socket, ...args], socket, async (dial) => {
      const device = await (await negotiateNbd(await dial(), options)).go('')
      await work(device, folder)
      await device.close()
    })
  })
}

/** For the contract: a server that lives as long as the device. */
async function contractDevice(
  start: (
    folder: string,
    socket: string,
    size: number,
  ) => Promise<readonly [string, readonly string[], string]>,
  size: number,
): Promise<{ device: BlockDevice; cleanup: () => Promise<void> }> {
  const ready = Promise.withResolvers<BlockDevice>()
  const over = Promise.withResolvers<void>()
  const life = inFolder(async (folder) => {
    const socket = join(folder, 'nbd.sock')
    const [command, args, name] = await start(folder, socket, size)
    await withServer(command, args, socket, async (dial) => {
      ready.resolve(await (await negotiateNbd(await dial())).go(name))
      await over.promise
    })
  })
  life.catch(ready.reject)
  return {
    device: await ready.promise,
    cleanup: async () => {
      over.resolve()
      await life
    },
  }
}

blockDeviceContract('nbdkit memory', (size) =>
  contractDevice(
    async (_folder, socket, bytes) => [
      'nbdkit',
      ['--foreground', '--unix', socket, 'memory', `${bytes}`],
      '',
    ],
    size,
  ),
)

blockDeviceContract('nbdkit memory behind blocksize-policy 4096 to 128 KiB', (size) =>
  contractDevice(async (_folder, socket, bytes) => {
    const policy = ['blocksize-minimum=4096', 'blocksize-preferred=65536', 'blocksize-maximum=131072']
    const filter = [
      '--filter=blocksize-policy',
      'memory',
      `${bytes}`,
      ...policy,
      'blocksize-error-policy=error',
    ]
    return ['nbdkit', ['--foreground', '--unix', socket, ...filter], '']
  }, size),
)

blockDeviceContract('nbdkit file behind cow', (size) =>
  contractDevice(async (folder, socket, bytes) => {
    await writeFile(join(folder, 'base.img'), '')
    await truncate(join(folder, 'base.img'), bytes)
    return [
      'nbdkit',
      ['--foreground', '--unix', socket, '--filter=cow', 'file', join(folder, 'base.img')],
      '',
    ]
  }, size),
)

blockDeviceContract('qemu-nbd', (size) =>
  contractDevice(async (folder, socket, bytes) => {
    await writeFile(join(folder, 'disk.img'), '')
    await truncate(join(folder, 'disk.img'), bytes)
    const args = ['-f', 'raw', '-k', socket, '-x', 'disk', '-e', '4', '--persistent', '--discard=unmap']
    return ['qemu-nbd', [...args, join(folder, 'disk.img')], 'disk']
  }, size),
)

describe('qemu-nbd', () => {
  test('lists, describes, and exports a qcow2 image', () =>
    inFolder(async (folder) => {
      const socket = join(folder, 'qemu.sock')
      const image = join(folder, 'disk.qcow2')
      await succeed('qemu-img', ['create', '-f', 'qcow2', image, '8M'])
      const args = [
        '-f',
        'qcow2',
        '-k',
        socket,
        '-x',
        'disk',
        '-D',
        'of QEMU',
        '-e',
        '4',
        '--persistent',
        image,
      ]
      await withServer('qemu-nbd', args, socket, async (dial) => {
        const negotiation = await negotiateNbd(await dial())
        assert.deepEqual(await negotiation.list(), ['disk'])
        await assert.rejects(
          negotiation.go('nothing'),
          (error) => error instanceof RefusedError && /NBD_REP_ERR_UNKNOWN/.test(error.message),
        )
        const info = await negotiation.info('disk')
        assert.equal(info.size, SIZE)
        assert.equal(info.description, 'of QEMU')
        assert.deepEqual(info.features, {
          readOnly: false,
          flush: true,
          fua: true,
          trim: true,
          writeZeroes: true,
          fastZero: true,
          cache: true,
          multiConn: true,
          blockStatus: true,
        })
        const device = await negotiation.go('disk')
        const data = randomBytes(3 * MIB)
        await device.write(MIB, Buffer.from(data), { fua: true })
        assert.deepEqual(await device.blockStatus(0, SIZE), [
          { length: MIB, hole: true, zero: true },
          { length: 3 * MIB, hole: false, zero: false },
          { length: 4 * MIB, hole: true, zero: true },
        ])
        await device.trim(MIB, MIB)
        await device.flush()
        assert.deepEqual(await device.read(2 * MIB, 2 * MIB), data.subarray(MIB))
        await device.close()
        const other = await negotiateNbd(await dial())
        await other.abort()
      })
      assert.match(await succeed('qemu-img', ['check', image]), /No errors were found/)
    }))

  test('a read-only export', () =>
    inFolder(async (folder) => {
      const socket = join(folder, 'qemu.sock')
      const image = join(folder, 'disk.img')
      await writeFile(image, randomBytes(MIB))
      await withServer(
        'qemu-nbd',
        ['-r', '-f', 'raw', '-k', socket, '-x', 'disk', '--persistent', image],
        socket,
        async (dial) => {
          const device = await (await negotiateNbd(await dial())).go('disk')
          assert.equal(device.features.readOnly, true)
          assert.deepEqual(await device.read(0, MIB), await readFile(image))
          await assert.rejects(device.write(0, Buffer.alloc(512)), refused(1))
          await device.close()
        },
      )
    }))

  test('without structured replies', () =>
    inFolder(async (folder) => {
      const socket = join(folder, 'qemu.sock')
      const image = join(folder, 'disk.img')
      await writeFile(image, randomBytes(MIB))
      await withServer(
        'qemu-nbd',
        ['-f', 'raw', '-k', socket, '-x', 'disk', '--persistent', image],
        socket,
        async (dial) => {
          const device = await (await negotiateNbd(await dial(), { structuredReplies: false })).go('disk')
          assert.equal(device.features.blockStatus, false)
          assert.deepEqual(await device.read(0, MIB), await readFile(image))
          await device.close()
        },
      )
    }))

  test('a server that is killed: all in flight are lost', () =>
    inFolder(async (folder) => {
      const socket = join(folder, 'nbdkit.sock')
      const args = ['--foreground', '--unix', socket, '--filter=delay', 'memory', '8M', 'delay-write=30']
      await withServer('nbdkit', args, socket, async (dial, kill) => {
        const device = await (await negotiateNbd(await dial())).go('')
        const writes = Array.from({ length: 8 }, (_, index) =>
          assert.rejects(device.write(index * 4096, Buffer.alloc(4096)), LostError),
        )
        // A read overtakes the writes that wait, so they are in flight for certain.
        await device.read(0, 512)
        kill()
        await Promise.all(writes)
        await assert.rejects(device.read(0, 512), LostError)
        await device.close()
      })
    }))
})

describe('nbdkit', () => {
  test('error filter: every request fails with the error, the connection goes on', () =>
    nbdkit(['--filter=error', 'memory', '8M', 'error=ENOSPC', 'error-pwrite-rate=100%'], async (device) => {
      await assert.rejects(device.write(0, Buffer.alloc(4096)), refused(28))
      assert.deepEqual(await device.read(0, 4096), Buffer.alloc(4096))
      await assert.rejects(device.write(4096, Buffer.alloc(4096)), refused(28))
    }))

  test('error filter at a tenth of all reads: those fail alone', () =>
    nbdkit(['--filter=error', 'memory', '8M', 'error=EIO', 'error-pread-rate=10%'], async (device) => {
      const reads = await Promise.allSettled(
        Array.from({ length: 500 }, (_, index) => device.read(index * 4096, 4096)),
      )
      const failed = reads.filter((each) => each.status === 'rejected')
      assert.ok(failed.every((each) => refused(5)(each.reason)))
      assert.ok(failed.length > 0 && failed.length < 250, `${failed.length} of 500 failed`)
    }))

  test('error filter on simple replies', () =>
    nbdkit(
      ['--filter=error', 'memory', '8M', 'error=EINVAL', 'error-pread-rate=100%'],
      async (device) => {
        await assert.rejects(device.read(0, 4096), refused(22))
        await device.write(0, Buffer.alloc(4096))
      },
      { structuredReplies: false },
    ))

  test('delay filter: replies overtake each other', () =>
    nbdkit(['--filter=delay', 'memory', '8M', 'delay-read=300ms'], async (device) => {
      const order: string[] = []
      await Promise.all([
        device.read(0, 4096).then(() => order.push('read')),
        device.write(8192, Buffer.alloc(4096)).then(() => order.push('write')),
        device.flush().then(() => order.push('flush')),
      ])
      assert.equal(order.at(-1), 'read')
    }))

  test('blocksize-policy: what it would refuse is refused here, or split', () =>
    nbdkit(
      [
        '--filter=blocksize-policy',
        'memory',
        '8M',
        'blocksize-minimum=4096',
        'blocksize-preferred=4096',
        'blocksize-maximum=64k',
        'blocksize-error-policy=error',
      ],
      async (device) => {
        assert.deepEqual(device.blockSizes, { minimum: 4096, preferred: 4096, maximum: 65536 })
        const data = randomBytes(MIB)
        await device.write(4096, Buffer.from(data))
        assert.deepEqual(await device.read(4096, MIB), data)
        await assert.rejects(device.read(512, 4096), refused(22))
        await device.writeZeroes(0, 4 * MIB)
        await device.trim(0, 4 * MIB)
      },
    ))

  test('cow filter: the base stays as it was', () =>
    inFolder(async (folder) => {
      const base = join(folder, 'base.img')
      const bytes = randomBytes(MIB)
      await writeFile(base, bytes)
      await nbdkit(['--filter=cow', 'file', base], async (device) => {
        await device.write(65536, Buffer.alloc(65536, 1), { fua: true })
        assert.deepEqual(await device.read(65536, 65536), Buffer.alloc(65536, 1))
        assert.deepEqual(await device.read(0, 65536), bytes.subarray(0, 65536))
      })
      assert.deepEqual(await readFile(base), bytes)
    }))

  test('sparse-random: 8 GiB are mapped and the map does not lie', () =>
    nbdkit(['sparse-random', '8G', 'runlength=262144', 'percent=10', 'seed=7'], async (device) => {
      let at = 0
      let checked = 0
      while (checked < 20) {
        for (const extent of await device.blockStatus(at, 16 * MIB)) {
          const bytes = await device.read(at, Math.min(extent.length, MIB))
          if (extent.zero) assert.ok(bytes.equals(Buffer.alloc(bytes.length)), `zero at ${at}`)
          at += extent.length
          checked++
        }
      }
      assert.equal((await device.blockStatus(device.size - 4096, 4096)).length, 1)
    }))
})

describe('nbd-server', () => {
  test('reads, writes, flushes; its size and flags', () =>
    inFolder(async (folder) => {
      const socket = join(folder, 'nbd-server.sock')
      const image = join(folder, 'disk.img')
      const config = join(folder, 'nbd.conf')
      await writeFile(image, '')
      await truncate(image, SIZE)
      await writeFile(
        config,
        `[generic]\nunixsock = ${socket}\nallowlist = true\n[disk]\nexportname = ${image}\nflush = true\nfua = true\ntrim = true\n`,
      )
      const args = ['-d', '-C', config]
      await withServer('nbd-server', args, socket, async (dial) => {
        const negotiation = await negotiateNbd(await dial())
        assert.deepEqual(await negotiation.list(), ['disk'])
        const device = await negotiation.go('disk')
        assert.equal(device.size, SIZE)
        assert.equal(device.features.flush, true)
        assert.equal(device.features.fua, true)
        const data = randomBytes(2 * MIB)
        await device.write(MIB, Buffer.from(data), { fua: true })
        assert.deepEqual(
          await device.read(0, 4 * MIB),
          Buffer.concat([Buffer.alloc(MIB), data, Buffer.alloc(MIB)]),
        )
        await device.flush()
        await device.close()
      })
      assert.ok((await readFile(image)).length === SIZE)
    }))
})
