/** The guest's memory beside its disks: a FLUSH of a disk ends the slow taking of what is left of it. */
import assert from 'node:assert/strict'
import { once } from 'node:events'
import { connect } from 'node:net'
import { type TestContext, test } from 'node:test'
import { setTimeout as sleep } from 'node:timers/promises'
import type { BlockDevice } from '../../../lib/block/device.ts'
import { type Clock, systemClock } from '../../../lib/core/clock.ts'
import { RAM_AFTER_FLUSH_MS } from '../../../lib/core/limits.ts'
import { MIB } from '../../../lib/core/units.ts'
import { DiskLink } from '../../../lib/engine/link.ts'
import { negotiateNbd } from '../../../lib/nbd/client.ts'
import { PAGE, stream } from '../ram/qemu-stream.ts'
import { LISTENER, ME, start, until } from './outgoing-rig.ts'

const RAM = 256 * MIB
const BLOCK_SIZES = { minimum: 1, preferred: 4096, maximum: MIB }

function pages(from: number, to: number): Buffer {
  const all: Buffer[] = []
  for (let at = from; at < to; at += PAGE) all.push(stream.page(at))
  return Buffer.concat(all)
}

/** A guest whose memory is held up, and a disk of it that has nothing to flush. */
async function heldUp(
  context: TestContext,
  bytesPerSecond: number,
  sent: number,
  clock: Clock = systemClock,
): Promise<{ readonly device: BlockDevice; readonly said: () => string | undefined }> {
  const rig = await start(context, [ME], { clock }, { bytesPerSecond })
  const { migration, port, disk, lines } = rig
  const said = (): string | undefined => lines.find((text) => text.includes('was taken slowly'))
  // A far side that has a disk of a MiB.
  const link: DiskLink = new DiskLink(disk.near, ({ type, disk: number, epoch }) => {
    if (type !== 'open') return undefined
    void link.send({ type: 'opened', disk: number, epoch, errno: 0, text: '' }, 0)
    return { onMessage: () => undefined, onLost: () => undefined }
  })
  // The second listener is where the rig says: its own port, so that the kernel's table fits.
  const nbdPort = port + 1001
  await migration.arm([port, nbdPort], null)
  migration.classify(nbdPort, [{ name: 'vda', size: MIB, blockSizes: BLOCK_SIZES }])

  const memory = await rig.client('')
  const { socket } = memory
  socket.write(Buffer.concat([stream.header(), stream.start(), stream.list({ 'pc.ram': RAM }), stream.eos()]))
  socket.write(Buffer.concat([stream.part(), stream.page(0, 'pc.ram'), pages(PAGE, sent)]))
  await until('the rate of the link to be known', () => memory.got().length > sent)
  // The last of it: longer than the test takes, at half of the link's rate.
  socket.write(pages(RAM - (bytesPerSecond * 3) / 4, RAM))
  await sleep(300)
  assert.equal(said(), undefined)

  const nbd = connect({ host: LISTENER, port: nbdPort, localAddress: '127.0.0.1' })
  await once(nbd, 'connect')
  const device = await (await negotiateNbd(nbd)).go('vda')
  await sleep(100)
  assert.equal(said(), undefined)
  return { device, said }
}

test('a FLUSH of a disk lets go what is held up of the memory', async (context) => {
  const { device, said } = await heldUp(context, 8 * MIB, 2 * MIB)
  await device.flush()
  assert.equal(JSON.parse(said() ?? '{}').until, 'flush')
  await device.close()
})

test('on a fast link that FLUSH goes first, and libvirt has some time for the disks', async (context) => {
  const waiting: (() => void)[] = []
  // That time passes when the test says so.
  const clock: Clock = {
    ...systemClock,
    after: (ms, callback) => {
      if (ms !== RAM_AFTER_FLUSH_MS) return systemClock.after(ms, callback)
      waiting.push(callback)
      return () => undefined
    },
  }
  const { device, said } = await heldUp(context, 128 * MIB, 64 * MIB, clock)
  assert.equal(waiting.length, 0)
  await device.flush()
  assert.equal(said(), undefined)
  assert.equal(waiting.length, 1)
  waiting[0]!()
  assert.equal(JSON.parse(said() ?? '{}').until, 'flush')
  await device.close()
})
