/**
 * A guest as its domain XML describes it, reduced to what SWAM needs: name, uuid, and the disks with their format and
 * place. Pure. The text comes from libvirt, but a guest's owner can have written much of it: nothing in it is trusted.
 * The format is what the XML says, else raw; it is never probed. Of a backing chain it is only said that there is one,
 * and that only the XML of a running guest says.
 */
import { ProtocolError } from '../core/errors.ts'
import { GUEST_DISKS_MAX, GUEST_NAME_BYTES_MAX, PATH_BYTES_MAX } from '../core/limits.ts'
import { childOf, childrenOf, parseXml, type XmlElement } from './xml.ts'

export interface DomainDisk {
  /** `vda`. */
  readonly target: string
  /** `file` and `block` have a path as their source; other types (network, volume) have none here. */
  readonly type: string
  /** The path of the file or block device. */
  readonly source: string | undefined
  readonly format: string
  /** libvirt's name of the device, `virtio-disk0`; only a running guest has it. */
  readonly alias: string | undefined
  /** It lies on a backing file: what it holds is not in its own image alone. */
  readonly backed: boolean
  /** QEMU encrypts it: what the guest has on it does not lie in its image. Of a qcow2 its own header says so, too. */
  readonly encrypted: boolean
  readonly readOnly: boolean
  readonly shareable: boolean
}

export interface Domain {
  readonly name: string
  readonly uuid: string
  /** Hard disks only: a CD or a floppy is not copied. */
  readonly disks: readonly DomainDisk[]
}

const UUID = /^[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}$/

export function isUuid(text: string): boolean {
  return UUID.test(text)
}

/** A name that may become a file name: no slash, no leading dot, no control characters. */
export function isGuestName(text: string): boolean {
  return (
    text !== '' &&
    Buffer.byteLength(text) <= GUEST_NAME_BYTES_MAX &&
    !text.startsWith('.') &&
    // biome-ignore lint/suspicious/noControlCharactersInRegex: control characters are what is looked for
    !/[/\u0000-\u001f\u007f]/.test(text)
  )
}

/** Throws ProtocolError when the text is no XML, or no domain that can be used. */
export function parseDomain(text: string): Domain {
  const root = parseXml(text)
  if (root.name !== 'domain')
    throw new ProtocolError(`domain XML: expected <domain>, found <${root.name.slice(0, 32)}>`)
  const name = childOf(root, 'name')?.text ?? ''
  if (!isGuestName(name))
    throw new ProtocolError(`domain XML: expected a name, found ${JSON.stringify(name.slice(0, 64))}`)
  const uuid = (childOf(root, 'uuid')?.text ?? '').trim().toLowerCase()
  if (!isUuid(uuid))
    throw new ProtocolError(
      `domain XML of ${name}: expected a uuid, found ${JSON.stringify(uuid.slice(0, 64))}`,
    )
  const elements = childrenOf(childOf(root, 'devices'), 'disk').filter((element) =>
    ['disk', 'lun'].includes(element.attributes.get('device') ?? 'disk'),
  )
  if (elements.length > GUEST_DISKS_MAX) {
    throw new ProtocolError(
      `domain XML of ${name}: expected at most ${GUEST_DISKS_MAX} disks, found ${elements.length}`,
    )
  }
  const disks = elements.map((element) => diskOf(element, name))
  const targets = new Set(disks.map((disk) => disk.target))
  if (targets.size !== disks.length)
    throw new ProtocolError(`domain XML of ${name}: expected each disk target once`)
  return { name, uuid, disks }
}

/** A file or block device of a disk, and libvirt's word for what it is. */
export interface ImageFormatEntry {
  readonly path: string
  readonly format: string
}

/**
 * Every file and block device that a guest's disks consist of: their own images, and what these stand on, as far as the XML says (of a
 * guest that is shut off mostly not). Of CDs and floppies too: they are images. Throws ProtocolError as parseDomain does.
 */
export function imageFormats(text: string): ImageFormatEntry[] {
  const root = parseXml(text)
  if (root.name !== 'domain')
    throw new ProtocolError(`domain XML: expected <domain>, found <${root.name.slice(0, 32)}>`)
  const entries: ImageFormatEntry[] = []
  for (const disk of childrenOf(childOf(root, 'devices'), 'disk')) {
    let format = childOf(disk, 'driver')?.attributes.get('type') ?? 'raw'
    let element: XmlElement | undefined = disk
    // It ends: an XML has a greatest depth.
    while (element !== undefined) {
      const attributes: XmlElement['attributes'] | undefined = childOf(element, 'source')?.attributes
      const path = attributes?.get('file') ?? attributes?.get('dev')
      const usable = path?.startsWith('/') === true && !path.includes('\0')
      if (usable && Buffer.byteLength(path) <= PATH_BYTES_MAX) entries.push({ path, format })
      element = childOf(element, 'backingStore')
      format = childOf(element, 'format')?.attributes.get('type') ?? 'raw'
    }
  }
  return entries
}

function diskOf(element: XmlElement, guest: string): DomainDisk {
  const target = childOf(element, 'target')?.attributes.get('dev') ?? ''
  if (!/^[A-Za-z0-9]{1,32}$/.test(target)) {
    throw new ProtocolError(
      `domain XML of ${guest}: expected a disk target, found ${JSON.stringify(target.slice(0, 64))}`,
    )
  }
  const type = element.attributes.get('type') ?? 'file'
  const format = childOf(element, 'driver')?.attributes.get('type') ?? 'raw'
  if (!/^[a-z0-9-]{1,32}$/.test(type) || !/^[a-zA-Z0-9-]{1,32}$/.test(format)) {
    throw new ProtocolError(`domain XML of ${guest}: disk ${target}: expected words for its type and format`)
  }
  const place = childOf(element, 'source')
  const attributes = place?.attributes
  const source =
    type === 'file' ? attributes?.get('file') : type === 'block' ? attributes?.get('dev') : undefined
  if (
    source !== undefined &&
    (!source.startsWith('/') || source.includes('\0') || Buffer.byteLength(source) > PATH_BYTES_MAX)
  ) {
    throw new ProtocolError(`domain XML of ${guest}: disk ${target}: expected an absolute path as its source`)
  }
  return {
    target,
    type,
    source,
    format,
    alias: childOf(element, 'alias')?.attributes.get('name'),
    encrypted: [element, place].some((one) => childOf(one, 'encryption') !== undefined),
    backed: childOf(element, 'backingStore')?.attributes.has('type') === true,
    readOnly: childOf(element, 'readonly') !== undefined,
    shareable: childOf(element, 'shareable') !== undefined,
  }
}
