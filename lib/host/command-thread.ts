/**
 * Runs programs of the host from a thread of its own. Node's spawn waits for the new process to have begun: some
 * milliseconds for a process of our size, hundreds on a busy host, and swamd asks nft, ss and virsh every few seconds
 * while it carries data. Same contract as runCommand; a thread that dies is made anew at the next call.
 * At most COMMANDS_AT_ONCE_MAX of one program run at a time: a peer that asks a thousand times starts no thousand virsh,
 * and those hold up no nft.
 */
import { Worker } from 'node:worker_threads'
import { errorText, LostError, RefusedError, TimeoutError } from '../core/errors.ts'
import { COMMANDS_AT_ONCE_MAX, COMMANDS_WAITING_MAX } from '../core/limits.ts'
import { CommandError, type CommandOptions } from './command.ts'
import type { CommandFailure, CommandReply, CommandRequest } from './command-worker.ts'

/** What is to be run of one program. */
interface Lane {
  running: number
  readonly waiting: Job[]
}

interface Job {
  readonly id: number
  readonly lane: Lane
  readonly argv: readonly string[]
  readonly options: CommandOptions
  readonly resolve: (output: string) => void
  readonly reject: (error: Error) => void
  readonly onAbort: () => void
}

export class CommandThread {
  #worker: Worker | undefined
  #nextId = 1
  readonly #running = new Map<number, Job>()
  readonly #lanes = new Map<string, Lane>()
  #closed = false

  /** Processes under way. */
  get running(): number {
    return this.#running.size
  }

  /** A RunCommand; may be handed on by itself. */
  readonly run = (argv: readonly string[], options: CommandOptions): Promise<string> =>
    new Promise((resolve, reject) => {
      const name = argv.slice(0, 3).join(' ')
      if (this.#closed) throw new LostError(`${name}: the daemon is ending`)
      if (options.signal?.aborted === true) throw new LostError(`${name}: no longer wanted`)
      const lane = this.#laneOf(argv[0]!)
      if (lane.waiting.length >= COMMANDS_WAITING_MAX) {
        throw new RefusedError(`${name}: ${COMMANDS_WAITING_MAX} programs wait for their turn already`)
      }
      const id = this.#nextId++
      const job: Job = {
        id,
        lane,
        argv,
        options,
        resolve,
        reject,
        onAbort: () => this.#abort(job),
      }
      options.signal?.addEventListener('abort', job.onAbort, { once: true })
      lane.waiting.push(job)
      this.#start(lane)
    })

  /** Ends the thread; what runs is abandoned. Idempotent. */
  async close(): Promise<void> {
    this.#closed = true
    this.#lose(new LostError('commands: the daemon is ending'))
  }

  #laneOf(program: string): Lane {
    let lane = this.#lanes.get(program)
    if (lane === undefined) {
      lane = { running: 0, waiting: [] }
      this.#lanes.set(program, lane)
    }
    return lane
  }

  #start(lane: Lane): void {
    while (lane.waiting.length > 0 && lane.running < COMMANDS_AT_ONCE_MAX) {
      const job = lane.waiting.shift()!
      lane.running++
      this.#running.set(job.id, job)
      const { deadlineMs, outputBytesMax, input } = job.options
      this.#post({ type: 'run', id: job.id, argv: job.argv, deadlineMs, outputBytesMax, input })
    }
    if (this.#running.size === 0) this.#worker?.unref()
  }

  #post(request: CommandRequest): void {
    this.#worker ??= this.#make()
    this.#worker.ref()
    this.#worker.postMessage(request)
  }

  #make(): Worker {
    const worker = new Worker(new URL('./command-worker.ts', import.meta.url), { name: 'swam-commands' })
    const lost = (why: string): void => {
      if (this.#worker === worker) this.#lose(new LostError(`commands: the thread ended: ${why}`))
    }
    worker.on('message', (reply: CommandReply) => this.#receive(reply))
    worker.on('error', (error) => lost(errorText(error)))
    worker.on('exit', (code) => lost(`code ${code}`))
    return worker
  }

  #receive(reply: CommandReply): void {
    const job = this.#running.get(reply.id)
    if (job === undefined) return
    this.#settle(job)
    if ('output' in reply) job.resolve(reply.output)
    else job.reject(toError(job.argv, reply.failure))
    this.#start(job.lane)
  }

  /** The worker kills what runs and answers; what waits never ran. */
  #abort(job: Job): void {
    if (this.#running.has(job.id)) {
      this.#post({ type: 'abort', id: job.id })
      return
    }
    const at = job.lane.waiting.indexOf(job)
    if (at < 0) return
    job.lane.waiting.splice(at, 1)
    this.#settle(job)
    job.reject(new LostError(`${job.argv.slice(0, 3).join(' ')}: no longer wanted`))
  }

  #settle(job: Job): void {
    if (this.#running.delete(job.id)) job.lane.running--
    job.options.signal?.removeEventListener('abort', job.onAbort)
  }

  #lose(error: LostError): void {
    const worker = this.#worker
    this.#worker = undefined
    const waiting = [...this.#lanes.values()].flatMap((lane) => lane.waiting.splice(0))
    for (const job of [...this.#running.values(), ...waiting]) {
      this.#settle(job)
      job.reject(error)
    }
    void worker?.terminate()
  }
}

function toError(argv: readonly string[], failure: CommandFailure): Error {
  switch (failure.kind) {
    case 'failed':
      return new CommandError(argv, failure.exitCode, failure.stderr)
    case 'timeout':
      return new TimeoutError(failure.message)
    case 'lost':
      return new LostError(failure.message)
    case 'refused':
      return new RefusedError(failure.message)
  }
}
