/**
 * What an attacker runs inside a host of the lab: `hostile.ts NAME JSON`, one JSON object a line on standard output.
 * `calls`: a peer's key calls methods of the far daemon. `armed`: a peer's key goes through a migration's beginning and
 * then echoes what the far daemon carries to it, until standard input ends. `client`: a local user connects somewhere.
 * `flood`: a local user opens connections without end. It speaks the real protocol with the project's own code.
 */
import { readFileSync } from 'node:fs'
import { connect } from 'node:net'
import { setTimeout as sleep } from 'node:timers/promises'
import type { Bundle } from '../../lib/peer/bundle.ts'
import { Rpc } from '../../lib/peer/rpc.ts'
import { dialBundle } from '../../lib/peer/ssh.ts'
import { StreamMux } from '../../lib/peer/stream.ts'
import type { BundleKind } from '../../lib/wire/hello.ts'

export interface PeerPlan {
  readonly address: string
  readonly hostKey: string
  readonly key: string
}

export interface CallsPlan extends PeerPlan {
  /** One after the other; `times`: so many at once. */
  readonly calls: readonly { readonly method: string; readonly params: object; readonly times?: number }[]
  /** Bundles to dial before the calls. */
  readonly bundles?: readonly { readonly kind: BundleKind; readonly migrationId: string }[]
}

export interface ArmedPlan extends PeerPlan {
  readonly uuid: string
  readonly migrationId: string
  readonly ports: readonly number[]
}

export interface ClientPlan {
  readonly host: string
  readonly port: number
  readonly path?: string
  readonly fromAddress?: string
  readonly fromPort?: number
  readonly send?: string
  /** Stays connected until standard input ends. */
  readonly stay?: boolean
}

export interface FloodPlan {
  readonly host: string
  readonly port: number
  readonly path?: string
  readonly count: number
  readonly send?: string
}

function say(value: object): void {
  process.stdout.write(`${JSON.stringify(value)}\n`)
}

async function inputEnds(): Promise<void> {
  process.stdin.resume()
  await new Promise((resolve) => process.stdin.once('end', resolve))
}

async function dial(plan: PeerPlan, kind: BundleKind, migrationId: string): Promise<Bundle> {
  return await dialBundle({
    addresses: [plan.address],
    port: 22,
    user: 'swam',
    privateKey: readFileSync(plan.key, 'utf8'),
    hostKey: plan.hostKey,
    kind,
    migrationId,
    channels: 1,
    localName: 'hostile',
    timeoutMs: 30_000,
  })
}

const outcome = async (work: Promise<unknown>): Promise<object> =>
  await work.then(
    (result) => ({ result }),
    (error: unknown) => ({ error: error instanceof Error ? error.message : String(error) }),
  )

async function calls(plan: CallsPlan): Promise<void> {
  for (const { kind, migrationId } of plan.bundles ?? []) {
    const bundle = await dial(plan, kind, migrationId).catch((error: Error) => error)
    if (bundle instanceof Error) say({ error: bundle.message })
    else {
      const ended = await Promise.race([bundle.closed, sleep(3000)])
      say(ended === undefined ? { result: 'taken' } : { error: ended.message })
    }
  }
  const rpc = new Rpc(await dial(plan, 'control', ''))
  for (const { method, params, times = 1 } of plan.calls) {
    const all = Array.from({ length: times }, () => outcome(rpc.call(method, params, { timeoutMs: 60_000 })))
    for (const result of await Promise.all(all)) say(result)
  }
}

async function armed(plan: ArmedPlan): Promise<void> {
  const { uuid, migrationId } = plan
  const rpc = new Rpc(await dial(plan, 'control', ''))
  await rpc.call('announce', { migrationId, uuid, guest: 'x' })
  const bundles = await Promise.all([dial(plan, 'disk', migrationId), dial(plan, 'ram', migrationId)])
  new StreamMux(bundles[1]!, (_meta, stream) => {
    stream.on('error', () => undefined)
    stream.pipe(stream)
  })
  await rpc.call('arm', { migrationId, ports: plan.ports })
  say({ result: 'armed' })
  for (const bundle of bundles) void bundle.closed.then((error) => say({ ended: error?.message ?? 'well' }))
  await inputEnds()
}

/** Says every piece that comes, and how it ended. */
async function client(plan: ClientPlan): Promise<void> {
  const { path, host, port, fromAddress, fromPort } = plan
  const socket =
    path === undefined
      ? connect({
          host,
          port,
          ...(fromAddress === undefined ? {} : { localAddress: fromAddress }),
          ...(fromPort === undefined ? {} : { localPort: fromPort }),
        })
      : connect({ path })
  socket.on('connect', () => say({ local: socket.localPort ?? 0 }))
  socket.on('data', (bytes) => say({ got: bytes.toString('latin1').slice(0, 200) }))
  socket.on('error', (error) => say({ error: error.message }))
  if (plan.send !== undefined) socket.write(plan.send)
  const closed = new Promise((resolve) => socket.once('close', resolve))
  await Promise.race([closed, plan.stay === true ? inputEnds() : sleep(4000)])
  say({ closed: socket.destroyed })
}

async function flood(plan: FloodPlan): Promise<void> {
  const started = performance.now()
  const ends = new Map<string, number>()
  const count = (end: string): void => void ends.set(end, (ends.get(end) ?? 0) + 1)
  const open = async (): Promise<void> =>
    await new Promise((resolve) => {
      const socket =
        plan.path === undefined
          ? connect({ host: plan.host, port: plan.port })
          : connect({ path: plan.path, allowHalfOpen: true })
      let end = 'closed'
      if (plan.send !== undefined) socket.write(plan.send)
      socket.on('data', () => {
        end = 'answered'
      })
      socket.on('error', (error: NodeJS.ErrnoException) => {
        end = error.code ?? error.message
      })
      socket.on('end', () => socket.end())
      socket.on('close', () => {
        count(end)
        resolve()
      })
    })
  await Promise.all(Array.from({ length: plan.count }, open))
  say({ ends: Object.fromEntries(ends), ms: Math.round(performance.now() - started) })
}

if (import.meta.main) {
  const [name, json = '{}'] = process.argv.slice(2)
  const plan = JSON.parse(json) as CallsPlan & ArmedPlan & ClientPlan & FloodPlan
  const program = { calls, armed, client, flood }[name ?? '']
  if (program === undefined) throw new Error(`no program ${name}`)
  await program(plan)
  process.stdout.write('', () => process.exit(0))
}
