/**
 * `swam peer list`, `test`, `remove`, and the far side of `add`. List joins the config with what the daemon says; test has
 * the daemon measure; remove takes away what add laid down here, and says what to run at the far side.
 */
import type { Readable } from 'node:stream'
import { DEFAULT_CONFIG_PATH, loadConfig, readConfigText } from '../../config/load.ts'
import type { PeerConfig } from '../../config/schema.ts'
import { errorText } from '../../lib/core/errors.ts'
import { LINK_TEST_MS } from '../../lib/core/limits.ts'
import { shortHostName } from '../../lib/host/names.ts'
import { accept } from '../join/accept.ts'
import { withoutPeerKey } from '../join/authorized-keys.ts'
import { withoutPeer } from '../join/config-text.ts'
import { reloadText } from '../join/reload.ts'
import {
  type JoinHost,
  readAuthorizedKeys,
  replaceAuthorizedKeys,
  replaceConfig,
  THIS_HOST,
} from '../join/this-host.ts'
import type { LinkTestReport, LinkTestWay } from '../link-test.ts'
import type { PeerReport, StatusReport } from '../report.ts'
import { ask, askRoot, type GlobalOptions, noSuchPeer, type Output, requireRoot } from './context.ts'
import { EXIT } from './exit-codes.ts'
import { bytesText, durationText, jsonLine, plainText, rateText, tableText } from './format.ts'

export async function peerAcceptCommand(
  stdin: Readable,
  options: GlobalOptions,
  output: Output,
): Promise<void> {
  requireRoot('swam peer accept')
  const client = process.env['SSH_CONNECTION']?.split(' ')[0]
  await accept({
    configPath: options.config ?? DEFAULT_CONFIG_PATH,
    input: stdin,
    write: (text) => output.out(text),
    client,
  })
}

interface Listed {
  readonly name: string
  readonly site: string
  readonly addresses: readonly string[]
  readonly port: number
  /** Null: no daemon says. */
  readonly up: boolean | null
  readonly rttMs: number | null
  readonly error: string | null
}

/** The config, and what a daemon that runs says of it; a peer that only the daemon knows waits for a reload. */
export async function peerListCommand(options: GlobalOptions, output: Output): Promise<void> {
  const { peers } = await loadConfig(options.config ?? DEFAULT_CONFIG_PATH)
  let reports: readonly PeerReport[] = []
  let problem: string | null = null
  try {
    reports = ((await ask(options, 'status')) as unknown as StatusReport).peers
  } catch (error) {
    problem = errorText(error)
  }
  const listed = peers.map((peer) => listedOf(peer, reports, problem))
  if (options.json === true) {
    output.out(jsonLine({ version: 1, peers: listed, error: problem }))
    return
  }
  if (listed.length === 0) output.out('no peers are configured: swam peer add NAME user@host\n')
  else {
    const rows = listed.map((peer) => [
      peer.name,
      peer.site === '' ? '-' : peer.site,
      peer.addresses.join(' '),
      String(peer.port),
      peer.up === null ? '-' : peer.up ? 'up' : 'down',
      durationText(peer.rttMs),
      peer.error ?? '',
    ])
    output.out(`${tableText(['peer', 'site', 'addresses', 'port', 'state', 'round trip', ''], rows)}\n`)
  }
  if (problem !== null) output.err(`swam: ${plainText(problem)}\n`)
}

function listedOf(peer: PeerConfig, reports: readonly PeerReport[], problem: string | null): Listed {
  const report = reports.find(({ name }) => name === peer.name)
  const unknown = problem === null ? 'swamd does not know it yet: systemctl reload swamd' : null
  return {
    name: peer.name,
    site: peer.site,
    addresses: peer.addresses,
    port: peer.ssh.port,
    up: report?.up ?? null,
    rttMs: report?.rttMs ?? null,
    error: report === undefined ? unknown : report.error,
  }
}

/** Gives the exit code: 1 when a digest differs. */
export async function peerTestCommand(name: string, options: GlobalOptions, output: Output): Promise<number> {
  const report = (await askRoot(options, 'peerTest', { peer: name.slice(0, 64) }, 4 * LINK_TEST_MS).catch(
    (error: unknown) => {
      throw (error as { answerCode?: unknown }).answerCode === 'SWAM_NOT_FOUND' ? noSuchPeer(name) : error
    },
  )) as unknown as LinkTestReport
  const verified = report.out.verified && report.in.verified
  if (options.json === true) output.out(jsonLine(report))
  else {
    const way = (what: string, { bytes, elapsedMs, verified: good }: LinkTestWay): string => {
      const digest = good ? 'digest verified' : 'DIGEST DIFFERS'
      return `${what} ${rateText(bytes, elapsedMs)} (${bytesText(bytes)} in ${durationText(elapsedMs)}, ${digest})`
    }
    output.out(
      `${[
        `round trip ${report.rttMs} ms, its clock is ${clockText(report.clockMs)}`,
        way(`to ${plainText(report.peer)}`, report.out),
        way('from it', report.in),
        'over one SSH channel; the disks of a migration have four',
      ].join('\n')}\n`,
    )
  }
  return verified ? EXIT.done : EXIT.failed
}

function clockText(ms: number): string {
  if (Math.abs(ms) < 100) return 'the same'
  return `${durationText(Math.abs(ms))} ${ms > 0 ? 'ahead' : 'behind'}`
}

export async function peerRemoveCommand(
  name: string,
  options: GlobalOptions,
  output: Output,
  host: JoinHost = THIS_HOST,
): Promise<void> {
  requireRoot('swam peer remove')
  const configPath = options.config ?? DEFAULT_CONFIG_PATH
  // Before it is parsed: the file is replaced only if it still is this text, and so is what was parsed.
  const before = await readConfigText(configPath)
  const { peers } = await loadConfig(configPath)
  const owner = await host.login()
  const index = peers.findIndex((peer) => peer.name === name)
  const keysBefore = await readAuthorizedKeys(owner)
  const keys = withoutPeerKey(keysBefore, name)
  if (index < 0 && keys.removed === 0) throw noSuchPeer(name)
  const done: string[] = []
  // The key first: whatever fails then, the far side is shut out.
  if (keys.removed > 0) {
    await replaceAuthorizedKeys(owner, keysBefore, keys.text)
    done.push(`removed the key of ${name} from ${owner.home}/.ssh/authorized_keys`)
  }
  if (index >= 0) {
    await replaceConfig(configPath, before, withoutPeer(before, index))
    done.push(`removed peer ${name} from ${configPath}`)
  }
  const config = await loadConfig(configPath)
  done.push(await reloadText(config))
  const next = `${name} still has this host as a peer: run there: swam peer remove ${shortHostName()}`
  if (options.json === true) output.out(jsonLine({ version: 1, peer: name, done, next }))
  else output.out(`${[...done, next].map(plainText).join('\n')}\n`)
}
