/**
 * Asks libvirt, read-only (`virsh -r`: a user without rights may, and it can change nothing): which guest runs under a
 * uuid, how large and of what format its disks are, and how a job stands. Each call has its own deadline, because
 * libvirt answers nothing about a guest while it works on it.
 * It changes nothing and keeps no connection; a call takes 20 to 30 ms.
 */
import { errorText, ProtocolError, RefusedError } from '../core/errors.ts'
import {
  COMMAND_OUTPUT_BYTES_MAX,
  IMAGE_BYTES_MAX,
  LIBVIRT_DISK_CALLS_MAX,
  LISTED_GUESTS_MAX,
  VIRSH_DEADLINE_MS,
} from '../core/limits.ts'
import { KIB } from '../core/units.ts'
import { CommandError, type RunCommand, runCommand } from './command.ts'
import {
  type Domain,
  type DomainDisk,
  type ImageFormatEntry,
  imageFormats,
  isGuestName,
  isUuid,
  parseDomain,
} from './domain-xml.ts'

export interface RunningDisk extends DomainDisk {
  /** Bytes, as the guest sees the disk; undefined where libvirt does not know it (an empty drive). */
  readonly capacity: number | undefined
}

export interface RunningDomain {
  readonly name: string
  readonly uuid: string
  /** `running`, `paused`, … in libvirt's own words. */
  readonly state: string
  readonly disks: readonly RunningDisk[]
}

export interface JobInfo {
  /** `None`, `Unbounded`, `Completed`, … in libvirt's own words. */
  readonly type: string
  /** `Outgoing migration`, `Incoming migration`, …; empty when there is no job. */
  readonly operation: string
  /** The remaining lines, sizes as bytes and times as milliseconds: `Time elapsed` 1234. */
  readonly figures: ReadonlyMap<string, number>
}

export interface LibvirtOptions {
  readonly uri?: string
  /** The virsh program and what goes before it. */
  readonly virsh?: readonly string[]
  readonly run?: RunCommand
  readonly deadlineMs?: number
}

export class Libvirt {
  readonly #virsh: readonly string[]
  readonly #run: RunCommand
  readonly #deadlineMs: number

  constructor(options: LibvirtOptions = {}) {
    this.#virsh = [...(options.virsh ?? ['virsh']), '-r', '-q', '-c', options.uri ?? 'qemu:///system']
    this.#run = options.run ?? runCommand
    this.#deadlineMs = options.deadlineMs ?? VIRSH_DEADLINE_MS
  }

  /** The active guest with this uuid; undefined when there is none. */
  async runningDomain(uuid: string, signal?: AbortSignal): Promise<RunningDomain | undefined> {
    if (!isUuid(uuid))
      throw new RefusedError(`libvirt: expected a uuid, found ${JSON.stringify(uuid.slice(0, 64))}`)
    let xml: string
    let state: string | undefined
    try {
      state = await this.state(uuid, signal)
      if (state === undefined) return undefined
      xml = await this.#call(['dumpxml', uuid], signal)
    } catch (error) {
      if (isNoSuchDomain(error)) return undefined
      throw error
    }
    const domain = parseDomain(xml)
    if (domain.uuid !== uuid)
      throw new ProtocolError(`libvirt: asked for ${uuid}, got the XML of ${domain.uuid}`)
    const disks = new Array<RunningDisk>(domain.disks.length)
    const queue = domain.disks.entries()
    const work = async (): Promise<void> => {
      for (const [index, disk] of queue) {
        const capacity =
          disk.source === undefined ? undefined : await this.#capacity(uuid, disk.target, signal)
        disks[index] = { ...disk, capacity }
      }
    }
    await Promise.all(Array.from({ length: LIBVIRT_DISK_CALLS_MAX }, work))
    return { name: domain.name, uuid, state, disks }
  }

  /** The state of an active guest, in libvirt's own words; undefined when there is none with this uuid. */
  async state(uuid: string, signal?: AbortSignal): Promise<string | undefined> {
    if (!isUuid(uuid))
      throw new RefusedError(`libvirt: expected a uuid, found ${JSON.stringify(uuid.slice(0, 64))}`)
    try {
      const state = (await this.#call(['domstate', uuid], signal)).trim()
      return state === 'shut off' || state === 'crashed' || state === 'no state' ? undefined : state
    } catch (error) {
      if (isNoSuchDomain(error)) return undefined
      throw error
    }
  }

  /** The uuid of the guest that virsh knows by this word, active or not: a name, or an id. */
  async uuidOf(name: string): Promise<string | undefined> {
    if (!isGuestName(name))
      throw new RefusedError(`libvirt: expected a guest's name, found ${JSON.stringify(name)}`)
    try {
      const uuid = (await this.#call(['domuuid', `--domain=${name}`])).trim()
      return isUuid(uuid) ? uuid : undefined
    } catch (error) {
      if (isNoSuchDomain(error)) return undefined
      throw error
    }
  }

  /** What an active guest has of memory now, in bytes; undefined where virsh does not say. */
  async memoryBytes(uuid: string): Promise<number | undefined> {
    if (!isUuid(uuid))
      throw new RefusedError(`libvirt: expected a uuid, found ${JSON.stringify(uuid.slice(0, 64))}`)
    const kib = /^Used memory:\s+(\d{1,12}) KiB$/m.exec(await this.#call(['dominfo', uuid]))?.[1]
    return kib === undefined ? undefined : Number(kib) * KIB
  }

  /** Why a paused guest is, in libvirt's own words: `user`, `migrating`, `starting up`; undefined for one that is not. */
  async pauseReason(uuid: string): Promise<string | undefined> {
    if (!isUuid(uuid))
      throw new RefusedError(`libvirt: expected a uuid, found ${JSON.stringify(uuid.slice(0, 64))}`)
    return /^paused \((.+)\)$/.exec((await this.#call(['domstate', uuid, '--reason'])).trim())?.[1]
  }

  /** The files of all guests' disks, running or not, with their formats. A guest that is at work on, and so not told of, has none. */
  async imageFormats(): Promise<ImageFormatEntry[]> {
    return (await this.#ofAll(imageFormats)).flat()
  }

  /** All guests that are defined here or run here; not those that libvirt is at work on. In the order of libvirt's list. */
  domains(): Promise<Domain[]> {
    return this.#ofAll(parseDomain)
  }

  /** What `read` makes of each guest's XML; it throws ProtocolError for one that it cannot use. */
  async #ofAll<Read>(read: (xml: string) => Read): Promise<Read[]> {
    const uuids = (await this.#call(['list', '--all', '--uuid'])).split('\n').map((line) => line.trim())
    const queue = uuids.filter(isUuid).slice(0, LISTED_GUESTS_MAX).entries()
    const found = new Map<number, Read>()
    const work = async (): Promise<void> => {
      for (const [index, uuid] of queue) {
        const xml = await this.#call(['dumpxml', uuid]).catch(() => undefined)
        if (xml !== undefined) found.set(index, read(xml))
      }
    }
    await Promise.all(Array.from({ length: LIBVIRT_DISK_CALLS_MAX }, work))
    return [...found].sort(([one], [other]) => one - other).map(([, value]) => value)
  }

  /** How the guest's current job stands, or with `completed` its last one. */
  async jobInfo(name: string, options: { readonly completed?: boolean } = {}): Promise<JobInfo | undefined> {
    if (!isGuestName(name))
      throw new RefusedError(`libvirt: expected a guest's name, found ${JSON.stringify(name)}`)
    const completed = options.completed === true ? ['--completed', '--keep-completed'] : []
    try {
      return parseJobInfo(await this.#call(['domjobinfo', ...completed, `--domain=${name}`]))
    } catch (error) {
      if (isNoSuchDomain(error)) return undefined
      throw error
    }
  }

  /** Throws with the reason when libvirt does not answer. */
  async reachable(): Promise<void> {
    await this.#call(['uri'])
  }

  /** What libvirt calls this host, and tells the source of a migration unless qemu.conf says otherwise. */
  async hostName(): Promise<string> {
    return (await this.#call(['hostname'])).trim()
  }

  async #capacity(uuid: string, target: string, signal: AbortSignal | undefined): Promise<number> {
    const text = await this.#call(['domblkinfo', uuid, target], signal)
    const capacity = Number(/^Capacity:\s+(\d{1,16})$/m.exec(text)?.[1] ?? Number.NaN)
    if (!Number.isSafeInteger(capacity) || capacity > IMAGE_BYTES_MAX) {
      throw new ProtocolError(
        `virsh domblkinfo ${uuid} ${target}: expected a capacity of at most ${IMAGE_BYTES_MAX}`,
      )
    }
    return capacity
  }

  #call(argv: readonly string[], signal?: AbortSignal): Promise<string> {
    return this.#run([...this.#virsh, ...argv], {
      deadlineMs: this.#deadlineMs,
      outputBytesMax: COMMAND_OUTPUT_BYTES_MAX,
      ...(signal === undefined ? {} : { signal }),
    })
  }
}

/** `vda` for the name under which libvirt lets QEMU export a disk (`drive-virtio-disk0`); else the name as it is. */
export function targetOfExport(exportName: string, disks: readonly DomainDisk[]): string {
  return (
    disks.find(({ alias }) => alias !== undefined && exportName === `drive-${alias}`)?.target ?? exportName
  )
}

function isNoSuchDomain(error: unknown): boolean {
  return (
    error instanceof CommandError &&
    /failed to get domain|Domain not found|domain is not running/i.test(errorText(error))
  )
}

const UNITS: Readonly<Record<string, number>> = {
  B: 1,
  KiB: 2 ** 10,
  MiB: 2 ** 20,
  GiB: 2 ** 30,
  TiB: 2 ** 40,
  ms: 1,
  s: 1000,
}

/** `Name: VALUE [UNIT]` lines; exported for its test. */
export function parseJobInfo(text: string): JobInfo {
  const figures = new Map<string, number>()
  let type = 'None'
  let operation = ''
  for (const line of text.split('\n')) {
    const match = /^([^:]{1,64}):\s+(.{1,64})$/.exec(line)
    if (match === null) continue
    const name = match[1]!.trim()
    const value = match[2]!.trim()
    if (name === 'Job type') type = value
    else if (name === 'Operation') operation = value
    else {
      const [number = '', unit = ''] = value.split(/\s+/)
      const factor = unit === '' ? 1 : UNITS[unit.replace(/\/s$/, '')]
      // Rounded, because virsh prints three digits after the point.
      if (/^\d+(\.\d+)?$/.test(number) && factor !== undefined)
        figures.set(name, Math.round(Number(number) * factor))
    }
  }
  return { type, operation, figures }
}
