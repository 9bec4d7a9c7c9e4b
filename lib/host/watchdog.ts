/**
 * A watchdog for a process of ours that hangs, stopped or stuck in a loop: a companion process looks once a second for
 * its heartbeat and kills it after `stallMs` without one. A daemon that hangs would hold a guest's last flush, and with
 * it the guest and libvirt's monitor; one that is dead ends their connections at once.
 *
 * The heartbeat is a number in a file without a name, whose descriptor the companion inherits: nobody can remove it, a
 * full disk does not stop it, nothing is left of it. It is written by a timer, so it stands for the event loop.
 * The companion is a few lines of /bin/sh. It counts its own turns and no clock, so that a machine that slept, or a
 * whole container that was frozen, kills nobody; and before each turn it looks whether its parent is still the process
 * that started it, so that it can never hit another one that got the pid, and ends by itself when there is none.
 * Under systemd it also feeds the unit's watchdog, and only while the heartbeat moves.
 */
import { type ChildProcess, spawn } from 'node:child_process'
import { closeSync, openSync, unlinkSync, writeSync } from 'node:fs'
import { join } from 'node:path'
import { SwamError } from '../core/errors.ts'
import {
  WATCHDOG_BEAT_MS,
  WATCHDOG_NOTIFY_MS,
  WATCHDOG_RESTART_MS,
  WATCHDOG_STALL_MS,
  WATCHDOG_TURN_MS,
} from '../core/limits.ts'

export interface WatchdogOptions {
  /** Where the heartbeat's file is made and, after a kill, the mark is left. */
  readonly directory: string
  readonly stallMs?: number
  /** systemd's NOTIFY_SOCKET, when the daemon is a unit with a WatchdogSec. */
  readonly notifySocket?: string | undefined
  /** The companion could not be started or ended; it is started again. */
  readonly onProblem: (text: string) => void
}

/** The companion leaves a file of this name when it has killed. */
export const WATCHDOG_MARK: string = 'killed-by-watchdog'

const BEAT_DIGITS = 16

/**
 * Arguments: the pid to watch, how many turns it may miss, the mark, and every how many turns systemd is told
 * (NOTIFY_SOCKET), which must hold up no turn. Descriptor 3 is the heartbeat. The field after the
 * state in /proc/PID/stat is the parent. A `sleep` that fails ends the loop: it must never count faster than time goes.
 * The kill comes first: the log may be what the daemon is stuck in.
 */
const COMPANION = `
trap '' HUP INT TERM PIPE
pid=$1 max=$2 mark=$3 every=$4 misses=0 told=0 last=
while sleep 1; do
  read -r stat <"/proc/$$/stat" || exit 1
  set -- \${stat##*) }
  [ "$2" = "$pid" ] || exit 0
  read -r beat </proc/self/fd/3 || exit 1
  told=$((told + 1))
  if [ "$beat" = "$last" ]; then
    misses=$((misses + 1))
  else
    misses=0 last=$beat
    if [ -n "$NOTIFY_SOCKET" ] && [ "$told" -ge "$every" ]; then
      told=0
      systemd-notify WATCHDOG=1 &
    fi
  fi
  [ "$misses" -ge "$max" ] || continue
  kill -KILL "$pid"
  : >"$mark"
  text="swamd (process $pid) made no progress for $max s: its watchdog killed it"
  printf '{"level":"error","time":"%s","msg":"%s"}\\n' "$(date -u +%Y-%m-%dT%H:%M:%S.000Z)" "$text"
  exit 0
done
exit 1
`

export class Watchdog {
  readonly #options: WatchdogOptions
  readonly #file: number
  readonly #timer: NodeJS.Timeout
  #beats = 0
  #child: ChildProcess | undefined
  #restart: NodeJS.Timeout | undefined
  #closed = false

  constructor(options: WatchdogOptions) {
    const turns = (options.stallMs ?? WATCHDOG_STALL_MS) / WATCHDOG_TURN_MS
    if (!Number.isInteger(turns) || turns < 2) {
      throw new SwamError('SWAM_WATCHDOG', `watchdog: expected whole seconds, at least 2, found ${turns}`)
    }
    this.#options = options
    const path = join(options.directory, `heartbeat-${process.pid}`)
    this.#file = openSync(path, 'w', 0o600)
    unlinkSync(path)
    this.#beat()
    this.#timer = setInterval(() => this.#beat(), WATCHDOG_BEAT_MS)
    this.#start()
  }

  /** Always as long, and over itself: it needs no space that it did not have from its first beat on. */
  #beat(): void {
    this.#beats++
    writeSync(this.#file, `${String(this.#beats).padStart(BEAT_DIGITS, '0')}\n`, 0)
  }

  #start(): void {
    const { directory, stallMs = WATCHDOG_STALL_MS, notifySocket = '' } = this.#options
    const turns = [stallMs, WATCHDOG_NOTIFY_MS].map((ms) => String(ms / WATCHDOG_TURN_MS)) as [string, string]
    const words = [String(process.pid), turns[0], join(directory, WATCHDOG_MARK), turns[1]]
    // A group of its own: what is sent to the daemon's group (Ctrl-C, a stop) does not reach it.
    const child = spawn('/bin/sh', ['-c', COMPANION, 'swamd-watchdog', ...words], {
      detached: true,
      cwd: '/',
      stdio: ['ignore', 'inherit', 'inherit', this.#file],
      env: { PATH: '/usr/bin:/bin', LC_ALL: 'C', NOTIFY_SOCKET: notifySocket },
    })
    this.#child = child
    child.unref()
    let over = false
    const ended = (text: string): void => {
      if (over || this.#closed) return
      over = true
      this.#options.onProblem(text)
      this.#restart = setTimeout(() => this.#start(), WATCHDOG_RESTART_MS)
    }
    child.on('error', (error) => ended(`it cannot be started: ${error.message}`))
    child.on('exit', (code, signal) => ended(`it ended with ${code ?? signal}`))
  }

  /** The companion's pid, for tests. */
  get companion(): number | undefined {
    return this.#child?.pid
  }

  /** Ends the companion. Idempotent. */
  close(): void {
    if (this.#closed) return
    this.#closed = true
    clearInterval(this.#timer)
    clearTimeout(this.#restart)
    closeSync(this.#file)
    const pid = this.#child?.pid
    if (pid === undefined || this.#child?.exitCode !== null || this.#child.signalCode !== null) return
    try {
      // Its group: the `sleep` of its last turn as well.
      process.kill(-pid, 'SIGKILL')
    } catch {
      // It ended by itself meanwhile.
    }
  }
}
