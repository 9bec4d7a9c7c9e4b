/** `swam verify GUEST`: the words; the comparison is in server/verify/, the records are the daemon's. */
import { GUEST_NAME_BYTES_MAX, VIRSH_DEADLINE_MS } from '../../lib/core/limits.ts'
import { isGuestName } from '../../lib/host/domain-xml.ts'
import type { GuestRecords } from '../verify/records.ts'
import { type VerifiedDisk, type VerifyReport, verify } from '../verify/verify.ts'
import { interruptible } from './analyze.ts'
import { askRoot, type GlobalOptions, type Output } from './context.ts'
import { EXIT, UsageError } from './exit-codes.ts'
import { durationText, jsonLine, plainText, timeText } from './format.ts'

export interface VerifyCommandOptions extends GlobalOptions {
  readonly image?: readonly string[]
}

/** Gives the exit code. Throws what exit-codes.ts knows. */
export async function verifyCommand(
  guest: string,
  options: VerifyCommandOptions,
  output: Output,
): Promise<number> {
  if (!isGuestName(guest))
    throw new UsageError(
      `${plainText(guest.slice(0, 64))}: expected the name of a guest (at most ${GUEST_NAME_BYTES_MAX} bytes) or its uuid`,
    )
  const images = new Map((options.image ?? []).map(imageOf))
  const ask = async (): Promise<GuestRecords> =>
    (await askRoot(options, 'proofRecords', { guest }, 2 * VIRSH_DEADLINE_MS)) as unknown as GuestRecords
  // What the daemon says of itself stays an error of the daemon's.
  const first = await ask()
  const asked = [first]
  const report = await interruptible('verify', (signal) =>
    verify({ ask: async () => asked.pop() ?? (await ask()), images, signal }),
  )
  output.out(options.json === true ? jsonLine(report) : `${verifyText(report)}\n`)
  return report.equal ? EXIT.done : EXIT.differs
}

function imageOf(text: string): [target: string, path: string] {
  const match = /^([A-Za-z0-9]{1,32})=(.+)$/s.exec(text)
  if (match === null || text.includes('\0'))
    throw new UsageError(`${plainText(text.slice(0, 64))}: expected TARGET=PATH, as in vda=/srv/old.img`)
  return [match[1]!, match[2]!]
}

export function verifyText(report: VerifyReport): string {
  return report.disks.map((disk) => diskText(report.guest, disk)).join('\n')
}

function diskText(guest: string, disk: VerifiedDisk): string {
  const { target, image, peer, direction, at, root, leaves, equalLeaves, differentLeaves, unknownLeaves } =
    disk
  const way = direction === 'in' ? `came from ${peer}` : `left for ${peer}`
  const judged = leaves - unknownLeaves
  const lines = [
    `${plainText(target)}: ${plainText(image)}; ${plainText(guest)} ${plainText(way)} at ${timeText(at)}, root ${root}`,
    differentLeaves === 0
      ? `  equal: ${equalLeaves} pieces of 64 KiB`
      : `  DIFFERS: ${differentLeaves} of ${judged} pieces of 64 KiB; at ${disk.differences.join(', ')}` +
        (differentLeaves > disk.differences.length ? ', …' : ''),
  ]
  if (unknownLeaves > 0) lines.push(`  not judged: ${unknownLeaves} pieces, of which nothing was proved`)
  const since = sinceText(disk)
  if (since !== undefined) lines.push(`  ${since}`)
  return lines.join('\n')
}

/** What an administrator has to know before a difference frightens him. */
function sinceText({ at, modifiedAt, differentLeaves }: VerifiedDisk): string | undefined {
  if (modifiedAt === null) return 'a block device does not tell whether it was written to since'
  if (modifiedAt <= at) return 'the image was not written to since'
  const later = `the image was last written to at ${timeText(modifiedAt)}, ${durationText(modifiedAt - at)} after that`
  return differentLeaves === 0 ? later : `${later}: a guest that has run since has changed its disk`
}
