/** The guest's memory beside its disks: a FLUSH of a disk ends the slow taking of what is left of it. */
import assert from 'node:assert/strict'
import { once } from 'node:events'
import { connect } from 'node:net'
import { test } from 'node:test'
import { setTimeout as sleep } from 'node:timers/promises'
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

test('a FLUSH of a disk lets go what is held up of the memory', async (context) => {
  const rig = await start(context, [ME], {}, { bytesPerSecond: 8 * MIB })
  const { migration, port, disk, lines } = rig
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
  socket.write(Buffer.concat([stream.part(), stream.page(0, 'pc.ram'), pages(PAGE, 2 * MIB)]))
  await until('the rate of the link to be known', () => memory.got().length > 2 * MIB)
  // The last 6 MiB: longer than the test takes, at half of the link's rate.
  socket.write(pages(RAM - 6 * MIB, RAM))
  await sleep(300)
  assert.doesNotMatch(lines.join(''), /was taken slowly/)

  const nbd = connect({ host: LISTENER, port: nbdPort, localAddress: '127.0.0.1' })
  await once(nbd, 'connect')
  const device = await (await negotiateNbd(nbd)).go('vda')
  await sleep(100)
  assert.doesNotMatch(lines.join(''), /was taken slowly/)
  await device.flush()
  const line = lines.find((text) => text.includes('was taken slowly'))
  assert.equal(JSON.parse(line ?? '{}').until, 'flush')
  await device.close()
})
