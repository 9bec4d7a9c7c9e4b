/**
 * Keeps translated connections alive through somebody's `nft flush ruleset`. The kernel translates only while there is
 * a nat chain and a rule that needs connection tracking: when the last one goes, packets of a caught connection leave for
 * the far host as they are, which answers with a reset, and the migration fails or hangs before the redirect is repaired.
 * So such a chain stands in a table with an owner (Linux 5.12, nft 0.9.9), which a flush by others leaves alone.
 *
 * The owner is an `nft -i` that waits for more on its standard input; the kernel removes the table when it ends, and it
 * ends when swamd does, however that happens. The redirect's own table has no owner on purpose: its elements outlive a
 * killed daemon for some seconds, and connections that are established then shall end in a reset and not in silence.
 */
import { type ChildProcess, spawn } from 'node:child_process'
import { NAT_ANCHOR_STDERR_CHARACTERS_MAX } from '../core/limits.ts'

export interface NatAnchorOptions {
  readonly table: string
  /** The nft program and what goes before it. */
  readonly nft?: readonly string[]
  /** It could not be made, or ended; without it a flush breaks running migrations, and nothing else. */
  readonly onProblem: (text: string) => void
}

export class NatAnchor {
  readonly #options: NatAnchorOptions
  #child: ChildProcess | undefined
  #said = false
  #closed = false

  constructor(options: NatAnchorOptions) {
    this.#options = options
  }

  /** Starts it when it does not run: to be called now and then. */
  keep(): void {
    if (this.#child !== undefined || this.#closed) return
    const [program, ...words] = this.#options.nft ?? ['nft']
    const child = spawn(program!, [...words, '-i'], {
      stdio: ['pipe', 'ignore', 'pipe'],
      // No file for the history of its command line.
      env: {
        PATH: process.env['PATH'] ?? '/usr/sbin:/usr/bin:/sbin:/bin',
        LC_ALL: 'C',
        HOME: '/nonexistent',
      },
    })
    this.#child = child
    let stderr = ''
    child.stderr.on('data', (piece: Buffer) => {
      stderr = (stderr + piece.toString('utf8')).slice(0, NAT_ANCHOR_STDERR_CHARACTERS_MAX)
      this.#problem(stderr)
    })
    child.stdin.on('error', () => undefined) // it ended: 'close' tells
    child.on('error', (error) => {
      this.#child = undefined
      this.#problem(error.message)
    })
    child.on('close', (code, signal) => {
      this.#child = undefined
      if (!this.#closed) this.#problem(`nft -i ended with ${code ?? signal}: ${stderr.trim()}`)
    })
    // Connections are tracked only while a rule asks for it; this one changes nothing.
    const chain =
      'chain output { type nat hook output priority -100; policy accept; ct state established accept; }'
    child.stdin.write(`add table inet ${this.#options.table} { flags owner; ${chain}; }\n`)
  }

  /** Once: it is tried again at every `keep`. */
  #problem(text: string): void {
    if (this.#said) return
    this.#said = true
    this.#options.onProblem(text.trim())
  }

  /** The kernel removes the table. Idempotent. */
  async close(): Promise<void> {
    this.#closed = true
    const child = this.#child
    if (child === undefined) return
    const ended = new Promise<void>((resolve) => child.once('close', () => resolve()))
    child.kill('SIGKILL')
    await ended
  }
}
