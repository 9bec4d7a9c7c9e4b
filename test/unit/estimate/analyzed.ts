/** Holds an estimate of one disk against what `swam analyze` says of the same images, which sends every byte. */
import assert from 'node:assert/strict'
import type { TestContext } from 'node:test'
import { KIB } from '../../../lib/core/units.ts'
import { type AnalyzeOptions, analyze } from '../../../server/analyze/analyze.ts'
import type { DiskEstimate, EstimateReport } from '../../../server/estimate/estimate.ts'
import { QUICK } from '../analyze/rig.ts'

const WITHIN = 0.05

export function near(found: number, expected: number, what: string, slack: number): void {
  const off = Math.abs(found - expected)
  assert.ok(off <= Math.max(slack, expected * WITHIN), `${what}: ${found}, analyze says ${expected}`)
}

/** @param images as `swam analyze` takes them */
export async function asAnalyzed(
  context: TestContext,
  report: EstimateReport,
  images: Pick<AnalyzeOptions, 'target'> & Partial<AnalyzeOptions>,
): Promise<DiskEstimate> {
  const sent = await analyze({ ...QUICK, ...images })
  const disk = report.disks[0]!
  assert.equal(disk.reason, null)
  context.diagnostic(`estimate ${disk.wireBytes} ${JSON.stringify(disk.bySource)}`)
  context.diagnostic(`analyze  ${sent.wireBytes} ${JSON.stringify(sent.bySource)}`)
  assert.equal(disk.dataBytes, sent.dataBytes)
  assert.equal(disk.bySource.zero, sent.bySource.zero)
  const { digest: _, ...sources } = disk.bySource
  assert.equal(
    Object.values(sources).reduce((sum, bytes) => sum + bytes, 0),
    sent.size,
    'each byte has one source',
  )
  near(disk.wireBytes, sent.wireBytes, 'wire', 8 * KIB)
  near(disk.bySource.literal, sent.bySource.literal, 'literal', 256 * KIB)
  // When the engine notices that not all lies in place any more depends on its turns: 12 to 24 KB on a return trip.
  near(disk.bySource.digest, sent.bySource.digest, 'digest', 16 * KIB)
  assert.deepEqual([report.dataBytes, report.wireBytes], [disk.dataBytes, disk.wireBytes])
  return disk
}
