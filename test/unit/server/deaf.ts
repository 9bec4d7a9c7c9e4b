/** A listener on loopback that never accepts and whose queue is full: who connects gets no answer, as behind a firewall. */
import { once } from 'node:events'
import { connect } from 'node:net'
import { setTimeout as sleep } from 'node:timers/promises'
import { Worker } from 'node:worker_threads'

const PROGRAM = `
const { createServer } = require('node:net')
const { parentPort } = require('node:worker_threads')
const server = createServer().listen({ host: '127.0.0.1', port: 0, backlog: 1 }, () => {
  parentPort.postMessage(server.address().port)
  // Nothing is accepted while this thread stands still.
  Atomics.wait(new Int32Array(new SharedArrayBuffer(4)), 0, 0, 60000)
})`

export async function deafListener(): Promise<{ port: number; close: () => Promise<void> }> {
  const worker = new Worker(PROGRAM, { eval: true })
  const [port] = (await once(worker, 'message')) as [number]
  const queued = Array.from({ length: 4 }, () => connect({ host: '127.0.0.1', port }))
  for (const socket of queued) socket.on('error', () => undefined)
  await sleep(100)
  return {
    port,
    close: async () => {
      for (const socket of queued) socket.destroy()
      await worker.terminate()
    },
  }
}
