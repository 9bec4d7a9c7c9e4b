/**
 * DiskSender with a receiver that lies: wants, confirmations, failures and answers at any time, in between what QEMU asks
 * for. Whatever it says, QEMU gets an answer to everything; after a loss only errors (I2); a FLUSH succeeds only after
 * a FLUSHED (I1); and all memory of the session is given back.
 */
import assert from 'node:assert/strict'
import { rm } from 'node:fs/promises'
import { Chunker, unflatten } from '../../../lib/chunk/chunker.ts'
import { leafDigests } from '../../../lib/chunk/leaf-digests.ts'
import { SlabPool } from '../../../lib/chunk/slab.ts'
import { LostError, ProtocolError, RefusedError } from '../../../lib/core/errors.ts'
import { LITERAL_BYTES_MAX } from '../../../lib/core/limits.ts'
import { SKETCH_BYTES } from '../../../lib/core/units.ts'
import { DiskAccount } from '../../../lib/engine/account.ts'
import { DiskLink } from '../../../lib/engine/link.ts'
import { DiskSender } from '../../../lib/engine/sender.ts'
import { SenderProof } from '../../../lib/engine/sender-proof.ts'
import { VersionMemory } from '../../../lib/engine/sent-versions.ts'
import { errnoOf } from '../../../lib/nbd/protocol/errno.ts'
import type { LeafMap } from '../../../lib/proof/leaf-map.ts'
import { DISK_FLUSHED, type DiskMessage } from '../../../lib/wire/disk.ts'
import { DISK_PROVED } from '../../../lib/wire/disk-proof.ts'
import { closeProofs, newMap } from '../../unit/engine/proof-rig.ts'
import type { FuzzTarget } from '../target.ts'
import { EPOCH, Liar } from './liar.ts'
import { anySteps, Script, turn } from './script.ts'

const SIZE = 1024 * 1024
const EIO = 5
const ENOSPC = 28
const STEPS_MAX = 100

const chunker = new Chunker()

class LyingReceiver extends Liar {
  /** Chunks that were described or zeroed, and the FLUSHes that wait. */
  chunks = 0
  readonly flushes: number[] = []
  readonly reads: { id: number; length: number }[] = []
  /** Changes that QEMU made so far; those before each FLUSH; and those that a FLUSHED stood for. */
  changes = 0
  confirmed = 0
  readonly #before = new Map<number, number>()

  override sayBytes(type: number, payload: Buffer): void {
    // A FLUSHED, or a PROVED, whoever made it up; of the latter the sender believes only what it knows.
    if ((type === DISK_FLUSHED && payload.length === 10) || (type === DISK_PROVED && payload.length >= 10)) {
      this.confirmed = Math.max(this.confirmed, this.#before.get(payload.readUInt32BE(6)) ?? 0)
    }
    super.sayBytes(type, payload)
  }

  #flush(id: number): void {
    this.flushes.push(id)
    this.#before.set(id, this.changes)
  }

  protected override heard(message: DiskMessage): void {
    if (message.type === 'describe') this.chunks += message.lengths.length
    else if (message.type === 'survey') {
      for (const run of message.runs) this.chunks += run.zero ? 1 : run.lengths.length
    } else if (message.type === 'zero') this.chunks++
    else if (message.type === 'flush' || message.type === 'prove') this.#flush(message.id)
    else if (message.type === 'read') this.reads.push({ id: message.id, length: message.length })
  }
}

export const diskSender: FuzzTarget = {
  name: 'disk-sender',
  inputBytesMax: 512,
  generate: (random) => anySteps(random, 200),
  allocationBytesMax: 16 * LITERAL_BYTES_MAX,
  async run(input) {
    const script = new Script(input)
    // By what the input is as a whole, so that the steps of older ones stay what they were.
    const proves = input.length % 2 === 1
    const liar = new LyingReceiver(proves)
    const map = proves ? await newMap(SIZE) : undefined
    const slabs = new SlabPool({ bytesMax: 64 * LITERAL_BYTES_MAX })
    const sender = new DiskSender({
      link: new DiskLink(liar.channel),
      disk: 0,
      epoch: EPOCH,
      size: SIZE,
      blockSizes: { minimum: 512, preferred: 4096, maximum: SIZE },
      account: new DiskAccount('vda', SIZE),
      slabs,
      describe: async (bytes) => unflatten(chunker.describe(bytes)),
      limits: { windowBytes: 4 * SIZE, drainMs: 1000, flushDeadlineMs: 60_000 },
      versions: new VersionMemory(),
      ...(map === undefined ? {} : { proof: proofOf(map) }),
    })
    const asked: Promise<unknown>[] = []
    const ask = (operation: Promise<unknown>, flushes: boolean): void => {
      const { changes } = liar
      const judged = operation.then(
        () => assert.ok(!flushes || liar.confirmed >= changes, 'I1: a FLUSH that nobody flushed'),
        (error: unknown) => checkError(error),
      )
      judged.catch(() => undefined)
      asked.push(judged)
    }
    ask(sender.open(49153, 'disk'), false)
    for (let steps = 0; steps < STEPS_MAX && !script.over; steps++) {
      if (script.once(3)) await turn()
      const offset = script.below(SIZE / 512) * 512
      const length = Math.min(SIZE - offset, (1 + script.below(300)) * 512)
      switch (script.below(18)) {
        case 0:
        case 1:
        case 2:
          liar.changes++
          ask(sender.write(offset, Buffer.alloc(length, script.below(3))), false)
          break
        case 3:
          liar.changes++
          ask(sender.writeZeroes(offset, length), false)
          break
        case 4:
          ask(sender.flush(), true)
          break
        case 5:
          liar.changes++
          ask(sender.write(offset, Buffer.alloc(512, 7), { fua: true }), true)
          break
        case 6:
          ask(
            sender.read(offset, length).then((data) => assert.equal(data.length, length)),
            false,
          )
          break
        case 7:
          liar.say({ type: 'opened', errno: script.once(4) ? ENOSPC : 0, text: 'as it is' })
          break
        case 8:
          liar.say({
            type: 'want',
            runs: [{ first: script.below(liar.chunks + 2), count: 1 + script.below(3) }],
          })
          break
        case 9:
        case 10: {
          const first = script.below(liar.chunks + 1)
          const count = Math.max(1, script.below(liar.chunks + 2))
          liar.say({
            type: 'applied',
            runs: [{ first, count, source: script.pick(['literal', 'zero', 'block'] as const) }],
          })
          break
        }
        case 15:
          liar.say({
            type: script.pick(['ask', 'detail'] as const),
            runs: [{ first: script.below(liar.chunks + 2), count: 1 + script.below(3) }],
          })
          break
        case 16: {
          const missing = script.take(9)
          const blocks = script.once(3) ? 1 + script.below(65) : 1 + script.below(17)
          const bits = Buffer.concat([missing, Buffer.alloc(9)]).subarray(0, Math.ceil(blocks / 8))
          const parts = { seq: script.below(liar.chunks + 2), blocks, missing: bits }
          if (script.once(2)) {
            liar.say({ type: 'parts', chunks: [parts] })
            break
          }
          const old = Buffer.from(bits.map((byte) => byte & script.below(256)))
          const sketches = Buffer.alloc(SKETCH_BYTES * ones(old), script.below(256))
          liar.say({ type: 'sketches', chunks: [{ ...parts, old, sketches }] })
          break
        }
        case 11: {
          const id = script.once(4) ? script.below(9) : liar.flushes.shift()
          if (id === undefined) break
          if (proves && script.once(2)) {
            const first = script.below(20)
            const excluded = script.once(2) ? [{ first, end: first + 1 }] : []
            const root = Buffer.alloc(32, script.once(4) ? 1 : 0)
            liar.say({ type: 'proved', id, root, unread: script.below(9), excluded })
          } else liar.say({ type: 'flushed', id })
          break
        }
        case 12: {
          const read = liar.reads.shift()
          if (read === undefined) break
          const bytes = script.once(4) ? script.below(9000) : read.length
          liar.say({
            type: 'readReply',
            id: read.id,
            errno: script.once(4) ? EIO : 0,
            data: Buffer.alloc(bytes),
          })
          break
        }
        case 13:
          if (script.once(4))
            liar.say({ type: 'failed', errno: script.pick([EIO, ENOSPC, 1]), text: 'disk full' })
          break
        case 14:
          if (script.once(4)) {
            const head = Buffer.from([0, 0, 0, 0, 0, EPOCH])
            liar.sayBytes(16 + script.below(25), Buffer.concat([head, script.take(30)]))
          }
          break
        default:
          if (script.once(8)) ask(sender.close(), false)
      }
    }
    // The link ends: everybody who still waits hears of it, and nothing of the session is left.
    liar.cut()
    await Promise.all(asked)
    await turn()
    const later = [sender.write(0, Buffer.alloc(512)), sender.flush(), sender.read(0, 512)]
    for (const result of await Promise.allSettled(later)) {
      assert.equal(result.status, 'rejected', 'I2: success after a loss')
      checkError((result as PromiseRejectedResult).reason)
    }
    for (let turns = 0; slabs.used > 0 && turns < 100; turns++) await turn()
    assert.equal(slabs.used, 0, 'slabs that nobody gave back')
    if (map === undefined) return
    await map.close()
    await rm(map.path)
  },
  close: closeProofs,
}

function proofOf(map: LeafMap): SenderProof {
  return new SenderProof({
    map,
    size: SIZE,
    target: 'vda',
    read: false,
    describe: async (bytes, span) => ({
      runs: unflatten(chunker.describe(bytes)),
      leaves: leafDigests(bytes, span),
    }),
  })
}

function ones(bytes: Uint8Array): number {
  return bytes.reduce((sum, byte) => sum + [...byte.toString(2)].filter((bit) => bit === '1').length, 0)
}

/** What QEMU may see: EIO, ENOSPC where the far side said so, and what a far side gave as the errno of one READ. */
function checkError(error: unknown): void {
  const known = [RefusedError, ProtocolError, LostError].some((one) => error instanceof one)
  if (!known) throw error
  assert.ok([EIO, ENOSPC].includes(errnoOf(error)), `errno ${errnoOf(error)}`)
}
