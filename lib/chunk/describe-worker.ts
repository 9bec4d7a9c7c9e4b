/**
 * The thread behind a Describer: takes buffers (shared, not copied), gives back their descriptions, the digests of the leaves in
 * them, or both, one at a time and in order. It reads the buffers only. Anything thrown here ends the thread, and the Describer reports it.
 */
import { parentPort } from 'node:worker_threads'
import { Chunker, type FlatDescription } from './chunker.ts'
import { type LeafSpan, leafDigests } from './leaf-digests.ts'

export interface DescribeRequest {
  readonly id: number
  readonly bytes: Uint8Array
  /** Whether it is cut. */
  readonly cut: boolean
  readonly leaves: LeafSpan | undefined
}

export interface DescribeReply extends FlatDescription {
  readonly id: number
  readonly leaves: Uint8Array<ArrayBuffer>
}

if (parentPort === null) throw new Error('describe-worker.ts runs as a worker thread only')

const port = parentPort
const chunker = new Chunker()
const NOTHING = new Uint8Array()

port.on('message', ({ id, bytes, cut, leaves: span }: DescribeRequest) => {
  const description = chunker.describe(cut ? bytes : NOTHING)
  const leaves = span === undefined ? new Uint8Array() : leafDigests(bytes, span)
  const { runs, lengths, digests } = description
  const reply: DescribeReply = { id, ...description, leaves }
  port.postMessage(reply, [runs.buffer, lengths.buffer, digests.buffer, leaves.buffer])
})
