/**
 * What the tests of who may do what share: an attacker in a host of the lab, as a user of his own, with the programs of
 * hostile.ts; started and waited for, or left running until the test is done with it. It judges nothing.
 */
import assert from 'node:assert/strict'
import { type ChildProcessWithoutNullStreams, spawn } from 'node:child_process'
import { once } from 'node:events'
import type { Lab } from '../lab/lab.ts'
import { type RunResult, until } from '../lab/run.ts'
import { ADDRESSES } from '../lab/seed.ts'
import type { HostName } from '../lab/state.ts'
import type { ArmedPlan, CallsPlan, ClientPlan, FloodPlan } from './hostile.ts'

export const NODE = '/usr/lib/swam/bin/node'
export const HOSTILE = '/usr/lib/swam/test/e2e/hostile.ts'
const USERS = { mallory: 'mallory', oper: 'oper', qemu: 'libvirt-qemu', root: 'root', swam: 'swam' } as const
type User = keyof typeof USERS

export interface Line {
  readonly result?: unknown
  readonly error?: string
  readonly got?: string
  readonly local?: number
  readonly closed?: boolean
  readonly ends?: Readonly<Record<string, number>>
  readonly ms?: number
  readonly ended?: string
}

const linesOf = (text: string): Line[] =>
  text
    .split('\n')
    .filter((line) => line !== '')
    .map((line) => JSON.parse(line) as Line)

export class Attack {
  readonly #lab: Lab
  hostKey = ''

  constructor(lab: Lab) {
    this.#lab = lab
  }

  words(user: User, program: readonly string[]): string[] {
    const as = USERS[user]
    return ['setpriv', `--reuid=${as}`, `--regid=${as}`, '--init-groups', ...program]
  }

  async as(host: HostName, user: User, ...program: readonly string[]): Promise<RunResult> {
    const [command = '', ...words] = this.words(user, program)
    return await this.#lab.host(host).exec(command, words, { check: false, input: '', timeoutMs: 90_000 })
  }

  async run(
    host: HostName,
    user: User,
    name: string,
    plan: Partial<CallsPlan & ClientPlan & FloodPlan>,
  ): Promise<Line[]> {
    const { stdout, stderr, code } = await this.as(host, user, NODE, HOSTILE, name, JSON.stringify(plan))
    assert.equal(code, 0, stderr)
    return linesOf(stdout)
  }

  /** A program that goes on until `end`; `line` waits for the next one that it says. */
  start(host: HostName, user: User, name: string, plan: Partial<ArmedPlan & ClientPlan>): Running {
    const words = this.words(user, [NODE, HOSTILE, name, JSON.stringify(plan)])
    const [program = '', ...more] = [...this.#lab.host(host).enter(), ...words]
    return new Running(spawn(program, more, { stdio: 'pipe' }))
  }

  /** Calls methods of hosta's daemon with that key. */
  async calls(key: string, calls: CallsPlan['calls'], bundles: CallsPlan['bundles'] = []): Promise<Line[]> {
    const plan: CallsPlan = { address: ADDRESSES.hosta.v4, hostKey: this.hostKey, key, calls, bundles }
    return await this.run('hostb', 'swam', 'calls', plan)
  }
}

export class Running implements AsyncDisposable {
  readonly #child: ChildProcessWithoutNullStreams
  readonly #ended: Promise<unknown>
  #text = ''
  #taken = 0

  constructor(child: ChildProcessWithoutNullStreams) {
    this.#child = child
    this.#ended = once(child, 'close')
    child.stdin.on('error', () => undefined)
    child.stdout.on('data', (bytes: Buffer) => {
      this.#text += bytes.toString('utf8')
    })
    child.stderr.on('data', (bytes: Buffer) => {
      this.#text += `${JSON.stringify({ error: bytes.toString('utf8').slice(0, 500) })}\n`
    })
  }

  async line(what: string): Promise<Line> {
    return await until(what, 30_000, () => {
      const found = linesOf(this.#text.slice(0, this.#text.lastIndexOf('\n') + 1))[this.#taken]
      if (found !== undefined) this.#taken++
      return found
    })
  }

  get lines(): Line[] {
    return linesOf(this.#text.slice(0, this.#text.lastIndexOf('\n') + 1))
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.#child.stdin.end()
    const timer = setTimeout(() => this.#child.kill('SIGKILL'), 10_000)
    await this.#ended
    clearTimeout(timer)
  }
}
