/**
 * `swam hook GUEST OPERATION SUBOPERATION [EXTRA]`: run by hooks/50-swam as root, with the domain XML on stdin. Tells
 * the daemon what libvirt is about to do, creates the images that the daemon asks for, and says why when it refuses.
 * It keeps a deadline over all of it. Every failure lets the migration go on as if SWAM were not there, unless the
 * config says `strict`; and only the announcement of a migration is ever refused.
 */
import { DEFAULT_CONFIG_PATH, loadConfig } from '../../config/load.ts'
import type { Config } from '../../config/schema.ts'
import {
  decideHook,
  type HookAnswer,
  type HookDomain,
  type HookPort,
  type HookReport,
  type HookRequest,
} from '../../hooks/decision.ts'
import { errorText, ProtocolError, RefusedError, TimeoutError } from '../../lib/core/errors.ts'
import {
  DOMAIN_XML_BYTES_MAX,
  GUEST_DISKS_MAX,
  HOOK_LATER_DEADLINE_MS,
  HOOK_MESSAGE_CHARACTERS_MAX,
  SALVAGE_SWEEP_WAIT_MS,
} from '../../lib/core/limits.ts'
import { parseDomain } from '../../lib/host/domain-xml.ts'
import { listeningPorts } from '../../lib/host/procnet.ts'
import { qemuPid } from '../../lib/host/qemu-pid.ts'
import { userIds } from '../../lib/host/users.ts'
import { callControl } from '../control.ts'
import { markPath, readMark } from '../incoming-mark.ts'
import { type GlobalOptions, HOOK_SOCKET_NAME, type Output } from './context.ts'
import { createImage, imageToCreate, removeUnwrittenImage } from './create-image.ts'
import { EXIT } from './exit-codes.ts'
import { plainText } from './format.ts'
import { keepImages, sweepSalvage } from './salvage-files.ts'

export interface HookInput {
  readonly argv: readonly string[]
  readonly stdin: AsyncIterable<Buffer>
  /** Of the events after the guest has started. */
  readonly laterDeadlineMs?: number
}

/** Gives the exit code: 0, or 10 when a strict host refuses. Never throws. */
export async function hookCommand(input: HookInput, options: GlobalOptions, output: Output): Promise<number> {
  const say = (text: string): void =>
    output.err(`swam: ${plainText(text).slice(0, HOOK_MESSAGE_CHARACTERS_MAX)}\n`)
  let config: Config
  try {
    config = await loadConfig(options.config ?? DEFAULT_CONFIG_PATH)
  } catch (error) {
    say(`not accelerated: ${errorText(error).split('\n')[0]}`)
    return EXIT.done
  }
  const isAnnouncement = input.argv[1] === 'migrate'
  // Until the guest has started here nobody stands still for it, and what goes direct costs a whole disk.
  const deadlineMs =
    isAnnouncement || input.argv[1] === 'started'
      ? config.hookDeadlineMs
      : Math.min(config.hookDeadlineMs, input.laterDeadlineMs ?? HOOK_LATER_DEADLINE_MS)
  try {
    await within(deadlineMs, (untilMs) => handle(input, config, untilMs, say))
    return EXIT.done
  } catch (error) {
    if (error instanceof StopError) {
      say(`migration refused: ${errorText(error)}`)
      return EXIT.hookRefused
    }
    if (!isAnnouncement) return EXIT.done
    if (config.strict) {
      say(`migration refused (strict = true): ${errorText(error)}`)
      return EXIT.hookRefused
    }
    say(`not accelerated: ${errorText(error)}`)
    return EXIT.done
  }
}

async function handle(
  input: HookInput,
  config: Config,
  untilMs: number,
  say: (text: string) => void,
): Promise<void> {
  const [guest = '', op = '', sub = ''] = input.argv
  const xml = await readXml(input.stdin)
  const domain = parseDomain(xml)
  const event = decideHook(input.argv, domain)
  if (event === undefined) return
  if (event.type === 'ended') await removeUnwritten(domain, config)
  const kept = event.type === 'ended' ? await salvage(domain, config) : []
  if (event.type === 'migrateBegin') await sweep(config)
  const ports = event.type === 'started' ? await portsOf(domain) : undefined
  const socket = `${config.runDir}/${HOOK_SOCKET_NAME}`
  const request: HookRequest = {
    guest,
    op,
    sub,
    xml,
    ...(ports === undefined ? {} : { ports }),
    ...(kept.length === 0 ? {} : { kept }),
  }
  const answer = hookAnswer(
    await callControl(socket, 'hook', request, { timeoutMs: untilMs - performance.now() }),
  )
  if (event.type === 'started' && answer.action === 'stop') throw new StopError(answer.message)
  if (event.type !== 'migrateBegin') return
  if (answer.action === 'refuse') throw new RefusedError(answer.message || 'the daemon gave no reason')
  if (answer.message !== '') say(answer.message)
  if (answer.action !== 'create') return
  const images = await createAll(answer, domain, config)
  const report: HookReport = { guest, uuid: domain.uuid, images }
  await callControl(socket, 'hookReport', report, { timeoutMs: Math.max(1, untilMs - performance.now()) })
  const failed = images.filter((image) => image.error !== null)
  if (failed.length > 0) throw new RefusedError(failed.map((image) => image.error).join('; '))
}

/** Only the daemon's word ends a migration that has begun, and only for a guest that would find an empty disk. */
class StopError extends RefusedError {}

/** After a failure: what was made for the migration and holds nothing must not pass for the guest's disk later. */
async function removeUnwritten(domain: HookDomain, config: Config): Promise<void> {
  for (const { source, type } of domain.disks) {
    // What cannot be removed stays; the daemon is told of the end all the same.
    if (type === 'file' && source !== undefined)
      await removeUnwrittenImage(source, config.images).catch(() => undefined)
  }
}

/** Before swamd is asked, which need not run any more, and before libvirt takes anything away. */
async function salvage(domain: HookDomain, config: Config): Promise<readonly string[]> {
  const missing = await readMark(markPath(config.runDir, domain.name))
  return missing.size === 0 ? [] : await keepImages(domain, missing, config)
}

/** The room may be needed for what comes now. To give back the blocks of a large file takes time, for which nobody waits. */
export async function sweep(
  config: Config,
  sweeping: (config: Config) => Promise<unknown> = sweepSalvage,
): Promise<void> {
  const swept = sweeping(config).catch(() => undefined)
  const late = new Promise<void>((resolve) => setTimeout(resolve, SALVAGE_SWEEP_WAIT_MS).unref())
  await Promise.race([swept, late])
}

async function createAll(
  answer: HookAnswer,
  domain: HookDomain,
  config: Config,
): Promise<HookReport['images']> {
  const owner = process.getuid?.() === 0 ? await userIds(config.qemuUser) : undefined
  const images: { path: string; created: boolean; error: string | null }[] = []
  for (const image of answer.create) {
    try {
      const created = await createImage(image, { domain, images: config.images, owner })
      images.push({ path: image.path, created, error: null })
    } catch (error) {
      images.push({ path: image.path, created: false, error: errorText(error) })
    }
  }
  return images
}

/** Without ports the daemon falls back to what it can see; a started guest is never held up for that. */
async function portsOf(domain: HookDomain): Promise<readonly HookPort[] | undefined> {
  try {
    return await listeningPorts(await qemuPid(domain.name, domain.uuid))
  } catch {
    return undefined
  }
}

/** The daemon is not root, and this is: its answer is checked like a stranger's. */
function hookAnswer(value: unknown): HookAnswer {
  const answer = (typeof value === 'object' && value !== null ? value : {}) as Record<string, unknown>
  const { action, create, message } = answer
  if (action !== 'none' && action !== 'create' && action !== 'refuse' && action !== 'stop') {
    throw new ProtocolError('hook.sock: expected action none, create, refuse or stop')
  }
  const images = create === undefined ? [] : create
  if (!Array.isArray(images) || images.length > GUEST_DISKS_MAX) {
    throw new ProtocolError(`hook.sock: expected a list of at most ${GUEST_DISKS_MAX} images to create`)
  }
  return { action, create: images.map(imageToCreate), message: typeof message === 'string' ? message : '' }
}

async function readXml(stdin: AsyncIterable<Buffer>): Promise<string> {
  const pieces: Buffer[] = []
  let bytes = 0
  for await (const piece of stdin) {
    bytes += piece.length
    if (bytes > DOMAIN_XML_BYTES_MAX) {
      throw new ProtocolError(`stdin: expected at most ${DOMAIN_XML_BYTES_MAX} bytes of domain XML`)
    }
    pieces.push(piece)
  }
  return Buffer.concat(pieces).toString('utf8')
}

/** What is still under way at the deadline is left behind: the process ends right after. */
function within<T>(deadlineMs: number, work: (untilMs: number) => Promise<T>): Promise<T> {
  return new Promise((resolve, reject) => {
    const timer = setTimeout(
      () => reject(new TimeoutError(`the hook was not done within ${deadlineMs} ms`)),
      deadlineMs,
    )
    work(performance.now() + deadlineMs)
      .then(resolve, reject)
      .finally(() => clearTimeout(timer))
  })
}
