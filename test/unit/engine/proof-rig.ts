/** Proofs of both ends over one device, with maps in files of a scratch folder; and what a disk's leaves are by a second opinion. */
import { createHash } from 'node:crypto'
import { mkdtemp, rm } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import type { BlockDevice } from '../../../lib/block/device.ts'
import { type Describer, describeWithLeaves } from '../../../lib/chunk/describer.ts'
import { KIB, MIB } from '../../../lib/core/units.ts'
import { LeafSlots } from '../../../lib/engine/leaf-assembly.ts'
import { ReceiverProof } from '../../../lib/engine/receiver-proof.ts'
import { SenderProof } from '../../../lib/engine/sender-proof.ts'
import { LeafFile } from '../../../lib/proof/leaf-file.ts'
import { LeafMap } from '../../../lib/proof/leaf-map.ts'
import type { LeafRun } from '../../../lib/proof/leaf-set.ts'

export interface ProofOptions {
  /** Whether the source asks that what was written be read back. */
  readonly read?: boolean
  readonly slots?: LeafSlots
}

export interface ProofEnds {
  readonly sender: SenderProof
  readonly receiver: ReceiverProof
}

type LeafWorker = Pick<Describer, 'describe' | 'digestLeaves'>

const scratch: { folder: Promise<string> | undefined; maps: LeafMap[]; next: number } = {
  folder: undefined,
  maps: [],
  next: 0,
}

export async function newMap(size: number): Promise<LeafMap> {
  scratch.folder ??= mkdtemp(join(tmpdir(), 'swam-proof-'))
  const file = await LeafFile.create(join(await scratch.folder, `map-${scratch.next++}`), size)
  const map = new LeafMap(file)
  scratch.maps.push(map)
  return map
}

export async function closeProofs(): Promise<void> {
  for (const map of scratch.maps.splice(0)) await map.close()
  const folder = await scratch.folder
  scratch.folder = undefined
  if (folder !== undefined) await rm(folder, { recursive: true })
}

export async function proofEnds(
  device: BlockDevice,
  worker: LeafWorker,
  { read = false, slots }: ProofOptions,
): Promise<ProofEnds> {
  return {
    sender: new SenderProof({
      map: await newMap(device.size),
      size: device.size,
      target: 'vda',
      read,
      describe: (bytes, leaves) => describeWithLeaves(worker, worker, bytes, leaves),
    }),
    receiver: new ReceiverProof({
      device,
      map: await newMap(device.size),
      target: 'vda',
      slots: slots ?? new LeafSlots({ bytesMax: 4 * MIB }),
      digest: (bytes) => worker.digestLeaves(bytes, { from: 0, to: bytes.length }),
      read: false,
    }),
  }
}

/** By BigInt, without anything of lib/proof. */
export function plainRoot(disk: Buffer, leftOut: readonly LeafRun[] = []): string {
  let sum = 0n
  for (let leaf = 0; leaf * 64 * KIB < disk.length; leaf++) {
    const bytes = disk.subarray(leaf * 64 * KIB, (leaf + 1) * 64 * KIB)
    if (bytes.every((byte) => byte === 0)) continue
    if (leftOut.some(({ first, end }) => leaf >= first && leaf < end)) continue
    const number = Buffer.alloc(8)
    number.writeBigUInt64BE(BigInt(leaf))
    const digest = createHash('sha256').update(bytes).digest()
    const part = createHash('sha256').update(number).update(digest).digest()
    // The least byte of each sum is the first of the digest.
    sum += BigInt(`0x${Buffer.from(part).reverse().toString('hex')}`)
  }
  return (sum % 2n ** 256n).toString(16).padStart(64, '0')
}
