/**
 * The thread behind a Describer: takes buffers (shared, not copied), gives back their descriptions, one at a time and
 * in order. It reads the buffers only. Anything thrown here ends the thread, and the Describer reports it.
 */
import { parentPort } from 'node:worker_threads'
import { Chunker, type FlatDescription } from './chunker.ts'

export interface DescribeRequest {
  readonly id: number
  readonly bytes: Uint8Array
}

export interface DescribeReply extends FlatDescription {
  readonly id: number
}

if (parentPort === null) throw new Error('describe-worker.ts runs as a worker thread only')

const port = parentPort
const chunker = new Chunker()

port.on('message', ({ id, bytes }: DescribeRequest) => {
  const reply: DescribeReply = { id, ...chunker.describe(bytes) }
  port.postMessage(reply, [reply.runs.buffer, reply.lengths.buffer, reply.digests.buffer])
})
