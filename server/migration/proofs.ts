/**
 * The proofs of one migration's disks: a map for each while it is under way, and in the end a record of it, or nothing. A map that
 * cannot be made (a full disk) is no failure of the migration: it goes without, and the log and the history say so.
 */
import type { BlockDevice } from '../../lib/block/device.ts'
import { type Described, type Describer, describeWithLeaves } from '../../lib/chunk/describer.ts'
import type { LeafSpan } from '../../lib/chunk/leaf-digests.ts'
import type { Log } from '../../lib/core/log.ts'
import type { DiskProof } from '../../lib/engine/disk-proof.ts'
import type { LeafSlots } from '../../lib/engine/leaf-assembly.ts'
import { ReceiverProof } from '../../lib/engine/receiver-proof.ts'
import { SenderProof } from '../../lib/engine/sender-proof.ts'
import type { LeafMap } from '../../lib/proof/leaf-map.ts'
import type { ProofFolder } from '../../lib/proof/proof-folder.ts'

/** What a host has for all of its proofs; none where verify is "off". */
export interface ProofMeans {
  readonly folder: ProofFolder
  /** verify = "read". */
  readonly read: boolean
  /** Of a thread that cuts what is sent. */
  readonly describer: Pick<Describer, 'describe'>
  /** Of another one, beside it. */
  readonly digester: Pick<Describer, 'digestLeaves'>
  readonly slots: LeafSlots
}

export interface ProvedGuest {
  readonly guest: string
  readonly uuid: string
  readonly peer: string
  readonly direction: 'in' | 'out'
  /** Where a disk's image lies at this host, as libvirt says. */
  readonly imageOf: (
    target: string,
  ) => { readonly source: string | undefined; readonly format: string } | undefined
  readonly log: Log
}

export class MigrationProofs {
  readonly #means: ProofMeans
  readonly #guest: ProvedGuest
  readonly #disks: { readonly target: string; readonly size: number; readonly proof: DiskProof }[] = []
  #ended = false

  constructor(means: ProofMeans, guest: ProvedGuest) {
    this.#means = means
    this.#guest = guest
  }

  async sender(target: string, size: number): Promise<SenderProof | undefined> {
    const { read, describer, digester } = this.#means
    const describe = (bytes: Uint8Array, leaves: LeafSpan): Promise<Described> =>
      describeWithLeaves(describer, digester, bytes, leaves)
    return await this.#begin(target, size, (map) => new SenderProof({ map, size, target, read, describe }))
  }

  async receiver(target: string, device: BlockDevice): Promise<ReceiverProof | undefined> {
    const { read, digester, slots } = this.#means
    const digest = (bytes: Uint8Array): Promise<Uint8Array> =>
      digester.digestLeaves(bytes, { from: 0, to: bytes.length })
    return await this.#begin(
      target,
      device.size,
      (map) => new ReceiverProof({ device, map, target, slots, digest, read }),
    )
  }

  async #begin<Proof extends DiskProof>(
    target: string,
    size: number,
    make: (map: LeafMap) => Proof,
  ): Promise<Proof | undefined> {
    try {
      const map = await this.#means.folder.begin(size)
      const proof = make(map)
      this.#disks.push({ target, size, proof })
      if (this.#ended) await this.#means.folder.drop(map)
      return proof
    } catch (error) {
      this.#guest.log.warn({ error, target }, 'no proof of this disk: its map cannot be kept')
      return undefined
    }
  }

  /** Once. @param arrived the guest went on at the destination */
  async end(arrived: boolean): Promise<void> {
    if (this.#ended) return
    this.#ended = true
    for (const { target, size, proof } of this.#disks) {
      proof.close()
      const { map, cutOver } = proof
      if (!arrived || cutOver === undefined) {
        await this.#means.folder.drop(map)
        continue
      }
      for (const { first, end } of proof.since) map.forget(first, end)
      const { guest, uuid, peer, direction, imageOf } = this.#guest
      const image = imageOf(target)
      const { root, at } = cutOver
      try {
        await this.#means.folder.keep(map, {
          guest,
          uuid,
          target,
          image: image?.source ?? null,
          format: image?.format ?? null,
          peer,
          direction,
          at,
          size,
          root,
        })
      } catch (error) {
        this.#guest.log.warn({ error, target }, 'the record of a proof is not kept')
        await this.#means.folder.drop(map)
      }
    }
  }
}
