/** A connection that was caught and is not ours to serve: it gets what it would have found without us, byte for byte. */
import { connect, type Socket } from 'node:net'
import { errorText, LostError, TimeoutError } from '../../lib/core/errors.ts'
import { QEMU_CONNECT_MS } from '../../lib/core/limits.ts'

/**
 * Passes it on to the first address that answers at that port. Our own connections are never caught.
 * @throws LostError when none does
 */
export async function relay(socket: Socket, addresses: readonly string[], port: number): Promise<void> {
  const far = await connectTo(addresses, port)
  for (const [from, to] of [
    [socket, far],
    [far, socket],
  ] as const) {
    from.on('error', () => to.resetAndDestroy())
    from.pipe(to)
  }
  // It may have gone while the other one was connected.
  if (socket.destroyed) far.resetAndDestroy()
}

async function connectTo(addresses: readonly string[], port: number): Promise<Socket> {
  const failures: string[] = []
  for (const host of addresses) {
    const socket = connect({ host, port, noDelay: true, allowHalfOpen: true })
    const failure = await new Promise<Error | undefined>((resolve) => {
      socket.once('connect', () => resolve(undefined))
      socket.once('error', resolve)
      socket.setTimeout(QEMU_CONNECT_MS, () => socket.destroy(new TimeoutError('no answer')))
    })
    socket.setTimeout(0)
    if (failure === undefined) return socket
    failures.push(`${host}: ${errorText(failure)}`)
  }
  throw new LostError(`connect to port ${port}: ${failures.join('; ')}`)
}
