/** The door of a listener: how many wait for its look, and that a flood does not keep it from looking. */
import assert from 'node:assert/strict'
import { once } from 'node:events'
import { type AddressInfo, connect, createServer, type Socket } from 'node:net'
import { test } from 'node:test'
import { DOOR_WAITING_MAX } from '../../../lib/core/limits.ts'
import { createLog } from '../../../lib/core/log.ts'
import { Door } from '../../../server/migration/door.ts'

const LISTENER = '127.77.0.1'

test('so many wait to be looked at, one more is put out at once; afterwards there is room again', async () => {
  const server = createServer().listen(0, LISTENER)
  await once(server, 'listening')
  const { port } = server.address() as AddressInfo
  const client = connect({ host: LISTENER, port, localAddress: '127.0.0.1' })
  const [socket] = (await once(server, 'connection')) as [Socket]
  try {
    const door = new Door({
      uids: [process.getuid!()],
      peerAddresses: [LISTENER],
      log: createLog({ level: 'info', stream: { write: () => undefined } }),
    })
    // One connection that is let in stands for all of them: only the number counts.
    const answers = Array.from({ length: DOOR_WAITING_MAX + 500 }, () => door.admit(port, socket))
    assert.equal(door.waiting, DOOR_WAITING_MAX)
    const allowed = await Promise.all(answers)
    assert.equal(allowed.lastIndexOf(true), DOOR_WAITING_MAX - 1)
    assert.equal(allowed.indexOf(false), DOOR_WAITING_MAX)
    assert.equal(door.waiting, 0)
    assert.equal(await door.admit(port, socket), true)
  } finally {
    client.destroy()
    socket.destroy()
    server.close()
  }
})
