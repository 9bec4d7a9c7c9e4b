/**
 * The thread behind a CommandThread: runs programs and gives back what came of each. Several run side by side. What
 * fails is told as plain fields, because the class of an error does not cross threads.
 */
import { parentPort } from 'node:worker_threads'
import { errorText, LostError, TimeoutError } from '../core/errors.ts'
import { CommandError, runCommand } from './command.ts'

export type CommandRequest =
  | {
      readonly type: 'run'
      readonly id: number
      readonly argv: readonly string[]
      readonly deadlineMs: number
      readonly outputBytesMax: number
      readonly input: string | undefined
    }
  | { readonly type: 'abort'; readonly id: number }

export type CommandFailure =
  | { readonly kind: 'failed'; readonly exitCode: number | null; readonly stderr: string }
  | { readonly kind: 'timeout' | 'lost' | 'refused'; readonly message: string }

export type CommandReply =
  | { readonly id: number; readonly output: string }
  | { readonly id: number; readonly failure: CommandFailure }

if (parentPort === null) throw new Error('command-worker.ts runs as a worker thread only')

const port = parentPort
const running = new Map<number, AbortController>()

port.on('message', (request: CommandRequest) => {
  if (request.type === 'abort') {
    running.get(request.id)?.abort()
    return
  }
  const { id, argv, deadlineMs, outputBytesMax, input } = request
  const abort = new AbortController()
  running.set(id, abort)
  const options = {
    deadlineMs,
    outputBytesMax,
    signal: abort.signal,
    ...(input === undefined ? {} : { input }),
  }
  void runCommand(argv, options)
    .then(
      (output): CommandReply => ({ id, output }),
      (error: unknown): CommandReply => ({ id, failure: failureOf(error) }),
    )
    .then((reply) => {
      running.delete(id)
      port.postMessage(reply)
    })
})

function failureOf(error: unknown): CommandFailure {
  if (error instanceof CommandError) {
    return { kind: 'failed', exitCode: error.exitCode, stderr: error.stderr }
  }
  const message = errorText(error)
  if (error instanceof TimeoutError) return { kind: 'timeout', message }
  return { kind: error instanceof LostError ? 'lost' : 'refused', message }
}
