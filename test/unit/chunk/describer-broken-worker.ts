/** A describe thread that fails: it throws if a buffer begins with 1, exits if with 2, and never answers the rest. */
import { parentPort } from 'node:worker_threads'

parentPort?.on('message', ({ bytes }: { bytes: Uint8Array }) => {
  if (bytes[0] === 1) throw new Error('planted fault')
  if (bytes[0] === 2) process.exit(3)
})
