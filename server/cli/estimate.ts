/** `swam estimate GUEST PEER`: the words; the daemon here and the one there do the work (server/estimate/). */
import { ESTIMATE_MS, GUEST_NAME_BYTES_MAX, LINK_TEST_MS } from '../../lib/core/limits.ts'
import { isGuestName } from '../../lib/host/domain-xml.ts'
import type { DiskEstimate, EstimateReport } from '../estimate/estimate.ts'
import { SOURCE_NAMES } from '../report.ts'
import { askRoot, type GlobalOptions, noSuchPeer, type Output } from './context.ts'
import { UsageError } from './exit-codes.ts'
import { bytesText, durationText, jsonLine, plainText, shareText, tableText, timeText } from './format.ts'
import { SOURCE_WORDS } from './status.ts'

/** Throws what exit-codes.ts knows. */
export async function estimateCommand(
  guest: string,
  peer: string,
  options: GlobalOptions,
  output: Output,
): Promise<void> {
  if (!isGuestName(guest))
    throw new UsageError(
      `${plainText(guest.slice(0, 64))}: expected the name of a guest (at most ${GUEST_NAME_BYTES_MAX} bytes) or its uuid`,
    )
  if (!/^[A-Za-z0-9._-]{1,63}$/.test(peer)) throw noSuchPeer(plainText(peer.slice(0, 64)))
  const report = (await askRoot(
    options,
    'estimate',
    { guest, peer },
    ESTIMATE_MS + 2 * LINK_TEST_MS,
  )) as unknown as EstimateReport
  output.out(options.json === true ? jsonLine(report) : `${estimateText(report)}\n`)
}

export function estimateText(report: EstimateReport): string {
  const { dataBytes, wireBytes, disks, ramBytes, imagesScanning } = report
  const counted = disks.filter(({ reason }) => reason === null)
  const lines = [
    `${plainText(report.guest)} to ${plainText(report.peer)}: ${countText(counted.length, 'disk')}, ` +
      `${bytesText(dataBytes)} not zero; on the wire ${bytesText(wireBytes)}, ${shareText(wireBytes, dataBytes)}`,
    `about ${durationText(report.seconds * 1000)} at ${report.linkMbit.toFixed(1)} Mbit/s ` +
      `(one SSH channel; the disks of a migration have four) and ${report.rttMs} ms round trip` +
      (ramBytes === null ? '' : `; the guest's memory, ${bytesText(ramBytes)}, comes on top`),
  ]
  if (imagesScanning > 0)
    lines.push(
      `${countText(imagesScanning, 'image')} of the far side not known yet: what they hold counts as sent; try again later`,
    )
  if (report.peerSilent)
    lines.push('the far side does not say what it has (share = "none" there): all counts as sent')
  for (const disk of disks) lines.push('', ...diskLines(disk))
  return lines.join('\n')
}

function diskLines(disk: DiskEstimate): string[] {
  const name = `${plainText(disk.target)}, ${plainText(disk.path ?? 'no file')}`
  if (disk.reason !== null) return [`${name}: not estimated: ${plainText(disk.reason)}`]
  const { bySource, dataBytes, wireBytes } = disk
  const known = disk.mapAt === null ? 'scanned now' : `as it was at ${timeText(disk.mapAt)}`
  const rows = SOURCE_NAMES.filter((source) => source !== 'digest' && bySource[source] > 0).map((source) => [
    SOURCE_WORDS[source],
    bytesText(bySource[source]),
    source === 'zero' ? '' : shareText(bySource[source], dataBytes),
  ])
  rows.push(['on the wire', bytesText(wireBytes), shareText(wireBytes, dataBytes)])
  rows.push(['of it digests', bytesText(bySource.digest), shareText(bySource.digest, dataBytes)])
  const table = tableText(['source', 'bytes', 'of the data'], rows)
  const note = disk.note === null ? [] : [plainText(disk.note)]
  return [`${name}: ${plainText(disk.format)}, ${bytesText(disk.size)}, ${known}`, table, ...note]
}

function countText(count: number, what: string): string {
  return `${count} ${what}${count === 1 ? '' : 's'}`
}
