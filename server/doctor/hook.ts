/**
 * libvirt's hook: there, the packaged one, executable, and noticed. libvirtd looks for hooks when it starts and on HUP, and
 * tells nobody which it found: so what counts is that it started after the hook, that it was told since (a mark that whoever
 * sends the HUP leaves), or that the hook has been at the daemon since.
 */
import { readFile, stat } from 'node:fs/promises'
import type { Finding } from './finding.ts'
import { type Place, tried } from './place.ts'

export const HOOK_PATH: string = '/etc/libvirt/hooks/qemu.d/50-swam'
/** Touched by whoever told libvirtd of its hooks by HUP. In /run, so it lives as long as any libvirtd may. */
export const TOLD_PATH: string = '/run/swam-libvirtd-told'
const PACKAGED = new URL('../../hooks/50-swam', import.meta.url)
const SERVICES = ['libvirtd', 'virtqemud']
const WHY = 'without the hook no daemon learns of a migration: what comes to this host goes direct'
const INSTALL = `install -D -m 755 /usr/lib/swam/hooks/50-swam ${HOOK_PATH}`

export async function checkHook(place: Place): Promise<Finding[]> {
  const program = await libvirtd()
  const tell = `systemctl kill --signal=HUP --kill-who=main ${program?.name ?? 'libvirtd'} && touch ${TOLD_PATH}`
  const found = await stat(HOOK_PATH).catch(() => undefined)
  const say = (id: string, what: string, mend: string): Finding[] => [
    { id, level: 'error', what, why: WHY, mend },
  ]
  if (found === undefined) return say('hook-missing', `${HOOK_PATH} is missing`, `${INSTALL} && ${tell}`)
  const [installed, packaged] = await Promise.all([readFile(HOOK_PATH), readFile(PACKAGED)])
  if (!installed.equals(packaged)) {
    return say('hook-differs', `${HOOK_PATH} is not the one of this release`, `${INSTALL} && ${tell}`)
  }
  if ((found.mode & 0o111) !== 0o111 || (found.mode & 0o022) !== 0 || found.uid !== 0) {
    const what = `${HOOK_PATH}: mode ${(found.mode & 0o777).toString(8)}, owner ${found.uid}: libvirt runs it as root, if at all`
    return say('hook-mode', what, `chown root:root ${HOOK_PATH} && chmod 755 ${HOOK_PATH} && ${tell}`)
  }
  if (program === undefined) return []
  // ctime: when it last became what it is, content, mode and name.
  const since = Math.max(found.ctimeMs, program.startedMs)
  const told = (await stat(TOLD_PATH).catch(() => undefined))?.mtimeMs ?? 0
  if (program.startedMs >= found.ctimeMs - 1000 || told >= since - 1000) return []
  if ((place.about?.hookAt ?? 0) >= since) return []
  return [
    {
      id: 'hook-unseen',
      level: 'warning',
      what: `${program.name} runs since before ${HOOK_PATH} was there as it is, and may not have noticed it`,
      why: WHY,
      mend: tell,
    },
  ]
}

/** The one that runs, and when it started. */
async function libvirtd(): Promise<{ name: string; startedMs: number } | undefined> {
  for (const name of SERVICES) {
    const pid = Number(((await tried('pidof', name)) ?? '').trim().split(/\s+/).at(-1) || Number.NaN)
    if (!Number.isInteger(pid)) continue
    const [line, uptime, hertz] = await Promise.all([
      readFile(`/proc/${pid}/stat`, 'utf8').catch(() => ''),
      readFile('/proc/uptime', 'utf8').catch(() => ''),
      tried('getconf', 'CLK_TCK'),
    ])
    // The fields after the command's name, which may hold anything: starttime is the 22nd of all.
    const ticks = Number(line.slice(line.lastIndexOf(')') + 2).split(' ')[19])
    const startedMs = Date.now() - Number(uptime.split(' ')[0]) * 1000 + (ticks / Number(hertz)) * 1000
    if (Number.isFinite(startedMs)) return { name, startedMs }
  }
  return undefined
}
