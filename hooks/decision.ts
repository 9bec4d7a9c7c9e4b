/**
 * What a call of libvirt's hook means to SWAM. Pure: the words of the call and the guest's description in, an event or
 * nothing out. Used by `swam hook`, which asks the daemon, and by the daemon, which acts.
 * It does not parse XML and decides nothing about a migration: that takes peers and config.
 */

export interface HookDisk {
  readonly target: string
  readonly type: string
  readonly source: string | undefined
  readonly format: string
  readonly readOnly: boolean
  readonly shareable: boolean
}

export interface HookDomain {
  readonly name: string
  readonly uuid: string
  readonly disks: readonly HookDisk[]
}

export interface HookPort {
  readonly address: string
  readonly port: number
}

export type HookEvent =
  /** A guest is about to come in; libvirt has not looked for its disks yet and holds no lock. */
  | {
      readonly type: 'migrateBegin'
      readonly guest: string
      readonly uuid: string
      readonly disks: readonly HookDisk[]
    }
  /** Its QEMU is up and listens. Libvirt holds the guest's lock: asking libvirt about it hangs. */
  | { readonly type: 'started'; readonly guest: string; readonly uuid: string }
  /** It is gone again, or, at the source, it has left. */
  | { readonly type: 'ended'; readonly guest: string; readonly uuid: string }

/** What the hook sends to the daemon, as method `hook` of hook.sock. */
export interface HookRequest {
  readonly guest: string
  readonly op: string
  readonly sub: string
  /** The domain XML as it came. */
  readonly xml: string
  /** At `started`: what the new QEMU listens on. */
  readonly ports?: readonly HookPort[]
  /** At the end of a migration that failed: images that libvirt may take away, and that are kept beside. */
  readonly kept?: readonly string[]
}

export interface ImageToCreate {
  readonly path: string
  readonly format: 'raw' | 'qcow2'
  readonly size: number
}

/** The daemon's answer. `message` is for the user who typed virsh. */
export interface HookAnswer {
  /** `stop`, at `started`: libvirt shall give the migration up, or the guest would find an empty disk. */
  readonly action: 'none' | 'create' | 'refuse' | 'stop'
  readonly create: readonly ImageToCreate[]
  readonly message: string
}

/** What the hook made of it, as method `hookReport` of hook.sock. */
export interface HookReport {
  readonly guest: string
  readonly uuid: string
  readonly images: readonly {
    readonly path: string
    readonly created: boolean
    readonly error: string | null
  }[]
}

/** `argv` is GUEST OPERATION SUBOPERATION. Undefined: not an event of SWAM's. */
export function decideHook(argv: readonly string[], domain: HookDomain): HookEvent | undefined {
  const [guest, op, sub] = argv
  // libvirt gives the name twice; that they differ would mean that this is not libvirt.
  if (guest === undefined || guest !== domain.name) return undefined
  const { uuid } = domain
  switch (`${op}/${sub}`) {
    case 'migrate/begin':
      return { type: 'migrateBegin', guest, uuid, disks: domain.disks.filter(isCopied) }
    case 'started/begin':
      return { type: 'started', guest, uuid }
    case 'stopped/end':
    case 'release/end':
      return { type: 'ended', guest, uuid }
    default:
      return undefined
  }
}

/** `--copy-storage-all` leaves out what both hosts share and what nobody writes. */
function isCopied(disk: HookDisk): boolean {
  return !disk.readOnly && !disk.shareable
}
