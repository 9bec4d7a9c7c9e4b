/** The config, and the daemon that runs with it. */
import { readFile } from 'node:fs/promises'
import { findingText } from '../../config/load.ts'
import { errorText } from '../../lib/core/errors.ts'
import { release } from '../release.ts'
import { type Finding, quoted } from './finding.ts'
import type { Place } from './place.ts'

const RESTART = 'systemctl restart swamd'
const CAP_NET_ADMIN = 12n
const CAP_DAC_READ_SEARCH = 2n

export async function checkDaemon(place: Place): Promise<Finding[]> {
  const { config, status } = place
  if (config === undefined) return configFindings(place)
  if (status === undefined) {
    return [
      {
        id: 'daemon-down',
        level: 'error',
        what: `no swamd answers at ${config.runDir}/control.sock`,
        why: 'migrations to and from this host go direct, and what they send is not saved',
        mend: 'systemctl start swamd',
      },
    ]
  }
  const findings: Finding[] = []
  const [mine, theirs] = [config.peers, status.peers].map((peers) =>
    peers
      .map(({ name }) => name)
      .sort()
      .join(' '),
  )
  if (mine !== theirs) {
    findings.push({
      id: 'daemon-peers',
      level: 'error',
      what: `swamd knows the peers "${theirs}", the config has "${mine}"`,
      why: 'migrations with the others go direct',
      mend: RELOAD,
    })
  }
  if (status.daemon.release !== release()) {
    findings.push({
      id: 'daemon-release',
      level: 'warning',
      what: `swamd ${status.daemon.release} runs, ${release()} is installed`,
      why: 'what was mended since is not mended in the one that runs',
      mend: RESTART,
    })
  }
  if (status.redirect.mode !== config.redirect) {
    findings.push({
      id: 'daemon-redirect',
      level: 'error',
      what: `swamd runs with redirect = "${status.redirect.mode}", the config says "${config.redirect}"`,
      why: 'a daemon reads all but its peers at its start only',
      mend: RESTART,
    })
  }
  return [...findings, ...(await capabilities(status.daemon.pid))]
}

/** The daemon's name in the unit; without systemd a HUP does the same. */
const RELOAD = 'systemctl reload swamd'

/** Root has them all; a daemon that was started by hand may have none. */
async function capabilities(pid: number): Promise<Finding[]> {
  const text = await readFile(`/proc/${pid}/status`, 'utf8').catch(() => '')
  const set = /^CapEff:\s+([0-9a-f]{1,16})$/m.exec(text)?.[1]
  if (set === undefined) return []
  const has = (capability: bigint): boolean => ((BigInt(`0x${set}`) >> capability) & 1n) === 1n
  const missing = [
    ...(has(CAP_NET_ADMIN) ? [] : ['CAP_NET_ADMIN']),
    ...(has(CAP_DAC_READ_SEARCH) ? [] : ['CAP_DAC_READ_SEARCH']),
  ]
  if (missing.length === 0) return []
  return [
    {
      id: 'daemon-rights',
      level: 'error',
      what: `swamd, process ${pid}, runs without ${missing.join(' and ')}`,
      why: 'it can catch no connection without the first, and read no image of QEMU without the second',
      mend: RESTART,
    },
  ]
}

/** A line that is wrong is taken out as a comment: then the key has its default. */
function configFindings(place: Place): Finding[] {
  const { configPath, configFindings: found, configProblem } = place
  if (found.length === 0) {
    return [
      {
        id: 'config-missing',
        level: 'error',
        what: errorText(configProblem),
        why: 'swamd does not start without its config',
        mend: `test -e ${quoted(configPath)} || cp /usr/share/swam/swam.toml ${quoted(configPath)}; chmod 644 ${quoted(configPath)}`,
      },
    ]
  }
  return found.map((one) => ({
    id: 'config-wrong',
    level: 'error',
    what: findingText(one),
    why: 'swamd does not start with it, and one that runs keeps the peers that it has',
    mend: /nothing: the key is required/.test(one.found)
      ? `sed -i '1i site = "site1"' ${quoted(configPath)}`
      : `sed -i '${one.line}s/^/# /' ${quoted(configPath)}`,
  }))
}
