/**
 * The watchdog on real processes: what makes no progress is killed, stopped or in a loop; what only rested together with
 * its companion is not; and no companion outlives what it watches, however that ended.
 */
import assert from 'node:assert/strict'
import { type ChildProcess, spawn } from 'node:child_process'
import { once } from 'node:events'
import { existsSync, mkdtempSync, readdirSync, readFileSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { describe, test } from 'node:test'
import { WATCHDOG_NOTIFY_MS } from '../../../lib/core/limits.ts'
import { WATCHDOG_MARK, Watchdog } from '../../../lib/host/watchdog.ts'
import { notifySocket } from './notify-socket.ts'

const STALL_MS = 3000
/** The companion's own rhythm, and a busy machine. */
const SLACK_MS = 15_000

interface Watched extends AsyncDisposable {
  readonly directory: string
  readonly pid: number
  readonly child: ChildProcess
  readonly output: () => string
  /** Sends a word. */
  readonly say: (word: string) => void
  /** Waits for that text in what it printed. */
  readonly said: (pattern: RegExp) => Promise<RegExpExecArray>
  readonly gone: Promise<NodeJS.Signals | number | null>
}

async function watched(...more: readonly string[]): Promise<Watched> {
  const directory = mkdtempSync(join(tmpdir(), 'swam-watchdog-'))
  const program = `${import.meta.dirname}/watchdog-program.ts`
  const child = spawn(
    process.execPath,
    [program, directory, ...(more.length > 0 ? more : [String(STALL_MS)])],
    {
      stdio: ['pipe', 'pipe', 'inherit'],
    },
  )
  let output = ''
  child.stdout.on('data', (bytes: Buffer) => {
    output += bytes.toString('utf8')
  })
  child.stdin.on('error', () => undefined)
  const gone = once(child, 'exit').then(
    ([code, signal]: (NodeJS.Signals | number | null)[]) => signal ?? code ?? null,
  )
  const said = async (pattern: RegExp): Promise<RegExpExecArray> =>
    await until(`${pattern} in ${JSON.stringify(output)}`, 60_000, () => pattern.exec(output) ?? undefined)
  await said(/companion \d+/)
  return {
    directory,
    pid: child.pid!,
    child,
    output: () => output,
    say: (word) => child.stdin.write(`${word}\n`),
    said,
    gone,
    [Symbol.asyncDispose]: async () => {
      child.kill('SIGKILL')
      await gone
      rmSync(directory, { recursive: true, force: true })
    },
  }
}

async function until<T>(what: string, timeoutMs: number, ask: () => T | undefined): Promise<T> {
  const end = performance.now() + timeoutMs
  for (;;) {
    const answer = ask()
    if (answer !== undefined) return answer
    assert.ok(performance.now() < end, `waited ${timeoutMs} ms for ${what}`)
    await rest(20)
  }
}

const rest = (ms: number): Promise<void> => new Promise((resolve) => setTimeout(resolve, ms))

/** Every process of the companion's group: the shell and its `sleep`. */
function groupOf(leader: number): number[] {
  return readdirSync('/proc')
    .map(Number)
    .filter((pid) => {
      if (!(pid > 0)) return false
      try {
        const stat = readFileSync(`/proc/${pid}/stat`, 'latin1')
        const [state, , group] = stat.slice(stat.lastIndexOf(')') + 2).split(' ')
        return state !== 'Z' && Number(group) === leader
      } catch {
        return false
      }
    })
}

async function companionEnds(leader: number): Promise<void> {
  await until(`companion ${leader} to end`, 3000 + SLACK_MS, () => groupOf(leader).length === 0 || undefined)
}

describe('watchdog', { concurrency: true }, () => {
  for (const { how, hang } of [
    { how: 'stopped', hang: (one: Watched) => process.kill(one.pid, 'SIGSTOP') },
    { how: 'in a loop', hang: (one: Watched) => one.say('hang') },
  ]) {
    test(`a process that is ${how} is killed, and it is said`, async () => {
      await using one = await watched()
      const companion = Number((await one.said(/companion (\d+)/))[1])
      await rest(1500)
      const from = performance.now()
      hang(one)
      assert.equal(await one.gone, 'SIGKILL')
      const ms = performance.now() - from
      assert.ok(ms > STALL_MS - 1500 && ms < STALL_MS + 1000 + SLACK_MS, `after ${ms} ms`)
      await companionEnds(companion)
      // It has written it, and we may not have read it yet.
      const line = await until(
        'its line',
        SLACK_MS,
        () => /^\{.*watchdog killed it.*\}$/m.exec(one.output())?.[0],
      )
      const said = JSON.parse(line) as { level: string; time: string; msg: string }
      assert.equal(said.level, 'error', line)
      assert.ok(Math.abs(Date.parse(said.time) - Date.now()) < 60_000, line)
      assert.match(said.msg, new RegExp(`process ${one.pid}\\) made no progress for 3 s`))
      assert.deepEqual(readdirSync(one.directory), [WATCHDOG_MARK])
    })
  }

  test('a process that works is left alone', async () => {
    await using one = await watched()
    const companion = Number((await one.said(/companion (\d+)/))[1])
    await rest(STALL_MS + 2500)
    assert.equal(one.child.exitCode ?? one.child.signalCode, null)
    assert.ok(groupOf(companion).length > 0)
  })

  test('so is one that rested together with its companion', async () => {
    await using one = await watched()
    const companion = Number((await one.said(/companion (\d+)/))[1])
    // As when the machine sleeps, or its container is frozen.
    process.kill(-companion, 'SIGSTOP')
    process.kill(one.pid, 'SIGSTOP')
    await rest(STALL_MS + 2500)
    process.kill(-companion, 'SIGCONT')
    process.kill(one.pid, 'SIGCONT')
    await rest(2500)
    assert.equal(one.child.exitCode ?? one.child.signalCode, null)
    assert.ok(groupOf(companion).length > 0)
    assert.ok(!existsSync(join(one.directory, WATCHDOG_MARK)))
  })

  test('it cannot take the heartbeat for gone: the file has no name', async () => {
    await using one = await watched()
    assert.deepEqual(readdirSync(one.directory), [])
  })

  test('the companion ends after its process was killed', async () => {
    await using one = await watched()
    const companion = Number((await one.said(/companion (\d+)/))[1])
    one.child.kill('SIGKILL')
    await one.gone
    await companionEnds(companion)
    assert.deepEqual(readdirSync(one.directory), [])
  })

  test('the companion ends at once when it is closed', async () => {
    await using one = await watched()
    const companion = Number((await one.said(/companion (\d+)/))[1])
    one.say('close')
    await until('the group to be gone', SLACK_MS, () => groupOf(companion).length === 0 || undefined)
    await rest(1500)
    assert.ok(!one.output().includes('problem'), one.output())
    assert.equal(one.child.exitCode ?? one.child.signalCode, null)
  })

  test('systemd hears that it works, and nothing more when it hangs', async () => {
    const directory = mkdtempSync(join(tmpdir(), 'swam-watchdog-notify-'))
    try {
      await using socket = await notifySocket(join(directory, 'notify.sock'))
      await using one = await watched('60000', socket.path)
      const fed = (count: number): Promise<unknown> =>
        until(`${count} of WATCHDOG=1`, count * WATCHDOG_NOTIFY_MS + SLACK_MS, () =>
          socket.messages().length >= count ? true : undefined,
        )
      await fed(2)
      assert.deepEqual(new Set(socket.messages()), new Set(['WATCHDOG=1']))
      process.kill(one.pid, 'SIGSTOP')
      // One may be on its way, by a beat before the stop.
      await rest(2500)
      const before = socket.messages().length
      await rest(2 * WATCHDOG_NOTIFY_MS)
      assert.equal(socket.messages().length, before)
      process.kill(one.pid, 'SIGCONT')
      await fed(before + 1)
    } finally {
      rmSync(directory, { recursive: true, force: true })
    }
  })

  test('a companion that was killed is started again, and works', async () => {
    await using one = await watched()
    const companion = Number((await one.said(/companion (\d+)/))[1])
    process.kill(-companion, 'SIGKILL')
    await one.said(/problem it ended with SIGKILL/)
    await rest(1500)
    one.say('companion')
    const second = Number((await one.said(/problem.*\ncompanion (\d+)/))[1])
    assert.notEqual(second, companion)
    process.kill(one.pid, 'SIGSTOP')
    assert.equal(await one.gone, 'SIGKILL')
    await companionEnds(second)
  })

  test('TERM and HUP, which a stop sends to all of a unit, do not end the companion', async () => {
    await using one = await watched()
    const companion = Number((await one.said(/companion (\d+)/))[1])
    await rest(500)
    process.kill(companion, 'SIGTERM')
    process.kill(companion, 'SIGHUP')
    await rest(1500)
    assert.ok(groupOf(companion).includes(companion))
  })
})

test('a watchdog without turns is a mistake', () => {
  for (const stallMs of [1000, 2500, 0]) {
    assert.throws(() => new Watchdog({ directory: '/nowhere', stallMs, onProblem: () => undefined }), {
      code: 'SWAM_WATCHDOG',
    })
  }
})
