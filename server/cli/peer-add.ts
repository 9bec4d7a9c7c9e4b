/**
 * `swam peer add NAME user@host`: both hosts become peers of each other over one SSH connection of the administrator's.
 * Both sides first say what they would do; then the far side does its part, then this one, and only then the far side
 * keeps it. What fails on the way is taken back, and what could not be is said.
 */
import { DEFAULT_CONFIG_PATH, loadConfig } from '../../config/load.ts'
import { errorText, RefusedError } from '../../lib/core/errors.ts'
import { shortHostName } from '../../lib/host/names.ts'
import type { Finding } from '../doctor/finding.ts'
import { findingsOf } from '../doctor/report.ts'
import { findAddresses } from '../join/addresses.ts'
import { examineJoined } from '../join/examine-joined.ts'
import { factsOf, type HostFacts, linesOf, peerName } from '../join/facts.ts'
import { FarSide, farTarget, isTarget } from '../join/far-side.ts'
import { Joining, type JoiningOptions } from '../join/joining.ts'
import { reloadText } from '../join/reload.ts'
import { type JoinHost, keyPathFor, makeKey, publicKeyAt, removeKey, THIS_HOST } from '../join/this-host.ts'
import { type GlobalOptions, type Output, requireRoot } from './context.ts'
import { findingsText } from './doctor.ts'
import { UsageError } from './exit-codes.ts'
import { jsonLine, plainText } from './format.ts'

export interface PeerAddOptions extends GlobalOptions {
  readonly dryRun?: boolean
  readonly replace?: boolean
  readonly port?: string
  readonly nameHere?: string
}

interface Report {
  readonly version: 1
  readonly peer: string
  readonly dryRun: boolean
  readonly changed: boolean
  readonly here: readonly string[]
  readonly there: readonly string[]
  readonly notes: readonly string[]
  /** What the doctors say afterwards. */
  readonly doctor?: { readonly here: readonly Finding[]; readonly there: readonly Finding[] }
}

export async function peerAddCommand(
  given: string,
  targetText: string,
  options: PeerAddOptions,
  output: Output,
  host: JoinHost = THIS_HOST,
): Promise<void> {
  requireRoot('swam peer add')
  const name = nameOf('NAME', given)
  const nameHere = nameOf('--name-here', options.nameHere ?? shortHostName())
  const port = options.port === undefined ? undefined : portOf(options.port)
  if (!isTarget(targetText)) {
    throw new UsageError(`expected user@host, found ${JSON.stringify(targetText.slice(0, 80))}`)
  }
  const configPath = options.config ?? DEFAULT_CONFIG_PATH
  const config = await loadConfig(configPath)
  const ours = await host.facts(config, configPath)
  const target = await farTarget(targetText, port)
  await using far = new FarSide(target, port, ['peer', 'accept'])
  const request = { name: nameHere, replace: options.replace === true }

  const seen = await far.ask({ ...request, step: 'look', facts: ours })
  const theirs = factsOf(seen['facts'], target.text)
  if (theirs.hostKey === ours.hostKey)
    throw new RefusedError(`${target.text} is this host: a host is no peer of itself`)
  const found = await findAddresses({
    what: name,
    where: shortHostName(),
    names: [target.host, ...(target.hostName === '' ? [] : [target.hostName]), ...theirs.names],
    theirs: theirs.addresses,
  })
  const notes = [...found.notes, ...linesOf(seen['notes'], `${target.text}: notes`)]
  const plan = await Joining.plan({ configPath, name, theirs, addresses: found.addresses, host })
  const differsThere = linesOf(seen['differs'], `${target.text}: differs`)
  if (options.replace !== true) refuseDifferent(name, plan.differs, target.text, differsThere)
  const wouldThere = linesOf(seen['would'], `${target.text}: would`)
  if (options.dryRun === true || plan.would.length + wouldThere.length === 0) {
    const dryRun = options.dryRun === true
    const report: Report = {
      version: 1,
      peer: name,
      dryRun,
      changed: false,
      here: plan.would,
      there: wouldThere,
      notes,
    }
    print(report, target.text, options, output)
    return
  }
  const { here, there } = await join(
    far,
    { configPath, name, theirs, addresses: found.addresses, host },
    ours,
    request,
  )
  here.push(await reloadText(await loadConfig(configPath)))
  const [mine, theirFindings] = await Promise.all([
    examineJoined(configPath, name),
    examinedThere(far, nameHere, target.text),
  ])
  const doctor = { here: mine, there: theirFindings }
  print(
    { version: 1, peer: name, dryRun: false, changed: true, here, there, notes, doctor },
    target.text,
    options,
    output,
  )
}

/** Our key first, because the far side needs it; then there, then here, then both stay. */
async function join(
  far: FarSide,
  options: JoiningOptions,
  ours: HostFacts,
  request: object,
): Promise<{ here: string[]; there: string[] }> {
  const keyPath = keyPathFor(options.configPath)
  const made = ours.publicKey === null
  const here: string[] = []
  let joining: Joining | undefined
  try {
    const publicKey = made ? await makeKey(keyPath, await options.host.login()) : await publicKeyAt(keyPath)
    if (made) here.push(`made the key ${keyPath}`)
    const facts = { ...ours, publicKey }
    const answer = await far.ask({ ...request, step: 'do', facts })
    const there = linesOf(answer['done'], 'the far side: done')
    const theirs = factsOf(answer['facts'], 'the far side')
    if (theirs.hostKey !== options.theirs.hostKey) throw new RefusedError('the far side told two host keys')
    joining = await Joining.plan({ ...options, theirs })
    here.push(...(await joining.apply()))
    const kept = await far.ask({ step: 'keep' })
    return { here, there: [...there, ...linesOf(kept['done'], 'the far side: done')] }
  } catch (error) {
    const left = (await joining?.undo()) ?? []
    if (made) await removeKey(keyPath)
    // The far side does the same by itself when this connection ends without keep. Whether keep still arrived nobody knows.
    const stays = left.filter((line) => line.startsWith('not undone'))
    const text =
      stays.length === 0
        ? 'nothing was changed here; the far side takes back its part when the connection ends: see swam peer list there'
        : stays.join('; ')
    throw new RefusedError(`${errorText(error)} (${text})`, { cause: error })
  }
}

/** The hosts are joined, whatever the doctor there says or does not say. */
async function examinedThere(far: FarSide, nameHere: string, where: string): Promise<readonly Finding[]> {
  try {
    return findingsOf((await far.ask({ step: 'doctor', name: nameHere }))['findings'], where)
  } catch (error) {
    const what = `the doctor there gave no report: ${errorText(error)}`
    return [
      {
        id: 'doctor-unknown',
        level: 'warning',
        what,
        why: 'what it would find is not known',
        mend: 'swam doctor',
      },
    ]
  }
}

function refuseDifferent(name: string, here: readonly string[], far: string, there: readonly string[]): void {
  if (here.length + there.length === 0) return
  const lines = [...here.map((line) => `here ${line}`), ...there.map((line) => `at ${far} ${line}`)]
  throw new RefusedError(`${name} is a peer with other values (--replace replaces them): ${lines.join('; ')}`)
}

function nameOf(what: string, text: string): string {
  try {
    return peerName(text, what)
  } catch (error) {
    throw new UsageError(errorText(error))
  }
}

function portOf(text: string): number {
  const port = Number(text)
  if (/^\d{1,5}$/.test(text) && port > 0 && port < 65_536) return port
  throw new UsageError(`--port: expected a port, found ${JSON.stringify(text.slice(0, 20))}`)
}

function print(report: Report, far: string, options: PeerAddOptions, output: Output): void {
  if (options.json === true) {
    output.out(jsonLine(report))
    return
  }
  const would = report.dryRun ? 'would ' : ''
  const lines = [
    ...report.notes.map((line) => `note: ${line}`),
    ...report.here.map((line) => `here: ${would}${line}`),
    ...report.there.map((line) => `at ${far}: ${would}${line}`),
  ]
  if (report.here.length + report.there.length === 0) {
    lines.push(`${report.peer} is a peer already, here and there: nothing to change`)
  } else if (!report.dryRun) lines.push(`next: swam peer test ${report.peer}`)
  output.out(`${lines.map(plainText).join('\n')}\n`)
  if (report.doctor === undefined) return
  output.out(findingsText('here: ', report.doctor.here))
  output.out(findingsText(`at ${far}: `, report.doctor.there))
}
