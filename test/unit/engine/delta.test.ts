/**
 * Deltas: of a block that lies in place in an older version only what changed crosses, whichever end has that version. What is
 * written is verified (I3), and either end that lies about pieces breaks the protocol.
 */
import assert from 'node:assert/strict'
import { after, test } from 'node:test'
import fc from 'fast-check'
import { sha256 } from '../../../lib/chunk/digest.ts'
import {
  BLOCK_BYTES as BLOCK,
  BRIEF_HINT_BYTES,
  blockCount,
  KIB,
  MIB,
  PIECE_BYTES,
  SKETCH_BYTES,
} from '../../../lib/core/units.ts'
import { hintsOf, setBlock } from '../../../lib/engine/chunk-blocks.ts'
import {
  applyBody,
  type BodyBytes,
  bodyBytesMax,
  differencesOf,
  type MissingBlocks,
  sketchOf,
  writeBody,
} from '../../../lib/engine/pieces.ts'
import {
  DISK_LITERAL,
  DISK_SURVEY,
  DISK_WANT,
  type DiskMessageBody,
  decodeDiskMessage,
  ENGINE_FEATURES,
  encodeDiskMessage,
  FEATURE_BLOCKS,
  FEATURE_DELTA,
} from '../../../lib/wire/disk.ts'
import { DISK_BRIEF, DISK_HINTS, DISK_SKETCHES } from '../../../lib/wire/disk-blocks.ts'
import { random } from '../../random.ts'
import { blocksOf, closeRigs, loneReceiver, noise, rig } from './rig.ts'

after(closeRigs)

function bodyOf(
  blocks: MissingBlocks,
  sketches: Buffer,
  chunk: Buffer,
  blockAt: (index: number) => Uint8Array,
): BodyBytes & { body: Buffer } {
  const { maps, bodyBytes, literalBytes, deltaBytes } = differencesOf(blocks, sketches, blockAt)
  const body = Buffer.alloc(bodyBytes)
  assert.equal(writeBody(blocks, maps, chunk, body, 0), bodyBytes)
  return { body, literalBytes, deltaBytes }
}

const PAGE = 8 * KIB
const ROW = 100

/** A database at work: some of its pages change in 100 bytes each. Gives how many 4 KiB blocks did. */
function work(disk: Buffer, pages: number, seed: number): number {
  const next = random(seed)
  const changed = new Set<number>()
  for (let at = 0; at < pages; at++) {
    const page = Math.floor(next() * (disk.length / PAGE)) * PAGE
    const row = page + Math.floor(next() * (PAGE - ROW))
    noise(ROW, seed * 1000 + at).copy(disk, row)
    for (let byte = row; byte < row + ROW; byte += ROW - 1) changed.add(Math.floor(byte / BLOCK))
  }
  return changed.size * BLOCK
}

/** What QEMU mirrors: the 64 KiB in which something differs. */
async function mirror(
  write: (offset: number, bytes: Buffer) => Promise<void>,
  before: Buffer,
  now: Buffer,
): Promise<void> {
  for (let at = 0; at < now.length; at += 64 * KIB) {
    const bytes = now.subarray(at, at + 64 * KIB)
    if (!bytes.equals(before.subarray(at, at + 64 * KIB))) await write(at, Buffer.from(bytes))
  }
}

test('the way back: pages that changed in 100 bytes cost at most 0.15 of their blocks', async () => {
  const contents = noise(16 * MIB, 3)
  const disk = Buffer.from(contents)
  const changed = work(disk, 400, 4)
  const { sender, device, wire } = await rig({ contents: Buffer.from(contents), minimum: 4096 })
  for (let at = 0; at < disk.length; at += MIB) await sender.write(at, disk.subarray(at, at + MIB))
  // A FLUSH that waits would have the last of them sent whole.
  await sender.settle()
  await sender.flush()
  assert.ok(device.durable.equals(disk))
  const { bySource } = sender.account
  assert.ok(bySource.delta > changed * 0.8, `${bySource.delta} bytes of ${changed} in older versions`)
  assert.equal(bySource.inPlace + bySource.block + bySource.delta + bySource.literal, disk.length)
  // The digests of what lies in place are not theirs: 32 bytes a chunk, and the hints of chunks that changed.
  const { digest } = bySource
  assert.ok(wire.bytes - digest < changed * 0.15, `${wire.bytes} bytes, ${digest} of digests, for ${changed}`)
})

test('while it runs: rounds of a mirror cost at most 0.15 of the blocks that changed', async () => {
  const disk = noise(8 * MIB, 5)
  const { sender, device, wire } = await rig({ contents: Buffer.alloc(8 * MIB), minimum: 4096 })
  await sender.write(0, Buffer.from(disk))
  await sender.flush()
  const atFirst = { bytes: wire.bytes, digest: sender.account.bySource.digest }
  let changed = 0
  for (let round = 1; round <= 6; round++) {
    const before = Buffer.from(disk)
    changed += work(disk, 60, round)
    await mirror((offset, bytes) => sender.write(offset, bytes), before, disk)
    // The last ones as a guest that is paused has them: a FLUSH waits.
    if (round > 3) await sender.flush()
    else await sender.settle()
    assert.ok(device.bytes.equals(disk), `round ${round}`)
  }
  const { digest, delta } = sender.account.bySource
  const described = digest - atFirst.digest
  assert.ok(delta > changed * 0.8, `${delta} bytes of ${changed} in older versions`)
  const cost = wire.bytes - atFirst.bytes - described
  assert.ok(cost < changed * 0.15, `${cost} bytes and ${described} of digests and hints, for ${changed}`)
})

test('what is rewritten over a long stretch is hinted before the far side asks, in units of 64 KiB', async () => {
  const disk = noise(8 * MIB, 15)
  const { sender, device, wire } = await rig({ contents: Buffer.alloc(8 * MIB), minimum: 4096 })
  await sender.write(0, Buffer.from(disk))
  await sender.flush()
  const sent = new Map<number, number>()
  wire.tamper = (type, payload) => {
    sent.set(type, (sent.get(type) ?? 0) + 1)
    return payload
  }
  const before = sender.account.bySource.literal
  const next = random(16)
  for (let round = 0; round < 4; round++) {
    let changed = 0
    // A third of the blocks, scattered: QEMU mirrors all of it.
    for (let at = MIB; at < 5 * MIB; at += BLOCK) {
      if (next() > 0.3) continue
      noise(BLOCK, round * 100_000 + at).copy(disk, at)
      changed += BLOCK
    }
    assert.ok(changed > MIB)
    await sender.write(MIB, Buffer.from(disk.subarray(MIB, 5 * MIB)))
    await sender.settle()
  }
  const literal = sender.account.bySource.literal - before
  await sender.flush()
  assert.ok(device.durable.equals(disk))
  assert.equal(sent.get(DISK_SURVEY) ?? 0, 0)
  assert.equal(sent.get(DISK_HINTS) ?? 0, 0, 'nothing was asked for')
  assert.ok((sent.get(DISK_BRIEF) ?? 0) >= 4)
  assert.ok(literal < 4 * 4 * MIB * 0.35, `${literal} bytes`)
})

test('guest-sized writes: one block that is rewritten costs what changed in it', async () => {
  const disk = noise(MIB, 11)
  const delay = async (): Promise<void> => {
    for (let turns = 0; turns < 20; turns++) await new Promise((resolve) => setImmediate(resolve))
  }
  const { sender, device } = await rig({ contents: Buffer.alloc(MIB), minimum: 4096, delay })
  await sender.write(0, Buffer.from(disk))
  await sender.flush()
  const before = sender.account.bySource.literal
  for (let block = 0; block < 20; block++) {
    noise(8, block + 1).copy(disk, block * 3 * BLOCK + 500)
    await sender.write(
      block * 3 * BLOCK,
      Buffer.from(disk.subarray(block * 3 * BLOCK, (block * 3 + 1) * BLOCK)),
    )
    await sender.settle()
  }
  await sender.flush()
  assert.ok(device.durable.equals(disk))
  const { literal, delta } = sender.account.bySource
  assert.deepEqual([literal - before, delta], [20 * PIECE_BYTES, 20 * (BLOCK - PIECE_BYTES)])
})

for (const { whose, isOwn } of [
  { whose: 'that the guest has brought', isOwn: true },
  { whose: "that are others'", isOwn: false },
]) {
  test(`files ${whose}, that lie elsewhere, and in which a little changed`, async () => {
    const stock = noise(4 * MIB, 21)
    const disk = Buffer.from(stock)
    let changed = 0
    for (let block = 3; block < disk.length / BLOCK; block += 8) {
      noise(52, 30 + block).copy(disk, block * BLOCK + 700)
      changed += BLOCK
    }
    // Neither image has it where the other one has; nothing lies in place.
    const { sender, device, wire } = await rig({
      contents: Buffer.alloc(8 * MIB),
      minimum: 4096,
      blockPlaces: [blocksOf(stock, isOwn)],
    })
    let sketches = 0
    const receive = wire.a.onFrame!
    wire.a.onFrame = (type, payload, cls) => {
      if (type === DISK_SKETCHES) sketches++
      receive(type, payload, cls)
    }
    const at = MIB + 5 * BLOCK
    for (let part = 0; part < disk.length; part += MIB)
      await sender.write(at + part, disk.subarray(part, part + MIB))
    await sender.settle()
    await sender.flush()
    assert.ok(device.durable.subarray(at, at + disk.length).equals(disk))
    const { delta, literal } = sender.account.bySource
    if (!isOwn) {
      // Whoever knows a block of an image must not hear what lies beside it.
      assert.deepEqual([sketches, delta, literal], [0, 0, changed])
      return
    }
    assert.ok(delta > 0.8 * changed, `${delta} of ${changed} bytes in similar blocks`)
    assert.ok(literal < 0.25 * changed, `${literal} bytes sent`)
  })
}

test('where what lies beside a find is not similar, few sketches are told of it', async () => {
  const stock = noise(4 * MIB, 21)
  const disk = Buffer.from(stock)
  const { sender, device, wire } = await rig({
    contents: Buffer.alloc(64 * MIB),
    blockPlaces: [blocksOf(stock)],
  })
  const sketched: number[] = []
  const receive = wire.a.onFrame!
  wire.a.onFrame = (type, payload, cls) => {
    const message = decodeDiskMessage(type, payload)
    if (message.type === 'sketches')
      sketched.push(message.chunks.reduce((sum, { sketches }) => sum + sketches.length / SKETCH_BYTES, 0))
    receive(type, payload, cls)
  }
  for (let copy = 0; copy < 12; copy++) {
    // Every other block is a new one.
    const fresh = noise(disk.length / 2, 100 + copy)
    for (let block = 0; block < disk.length / BLOCK / 2; block++)
      fresh.copy(disk, (2 * block + 1) * BLOCK, block * BLOCK, (block + 1) * BLOCK)
    for (let part = 0; part < disk.length; part += MIB)
      await sender.write(copy * disk.length + part, Buffer.from(disk.subarray(part, part + MIB)))
    await sender.settle()
    assert.ok(device.bytes.subarray(copy * disk.length, (copy + 1) * disk.length).equals(disk))
  }
  const blocks = sketched.reduce((sum, count) => sum + count, 0)
  assert.ok(blocks > 0 && blocks * BLOCK < 12 * MIB, `${blocks} blocks`)
})

test('a FLUSH that comes behind hints does not wait for their answer, where the bytes are there sooner', async () => {
  const disk = noise(MIB, 12)
  const { sender, device, wire } = await rig({ contents: Buffer.alloc(MIB), minimum: 4096 })
  Object.assign(wire.a, { roundTripMs: 1000 })
  await sender.write(0, Buffer.from(disk))
  await sender.flush()
  // The far side does not come to look what lies in place.
  const gate = Promise.withResolvers<void>()
  const read = device.read.bind(device)
  device.read = async (offset, length) => {
    await gate.promise
    return await read(offset, length)
  }
  const brief = Promise.withResolvers<void>()
  const literal = Promise.withResolvers<void>()
  wire.tamper = (type, payload) => {
    if (type === DISK_BRIEF) brief.resolve()
    if (type === DISK_LITERAL) literal.resolve()
    return payload
  }
  noise(12, 1).copy(disk, 300_000)
  await sender.write(262_144, Buffer.from(disk.subarray(262_144, 327_680)))
  await brief.promise
  const flushed = sender.flush()
  await literal.promise
  gate.resolve()
  await flushed
  assert.ok(device.durable.equals(disk))
})

test('I3: pieces that are alike only in their 16 bits are not believed: the chunk is sent as a whole', async () => {
  const contents = noise(MIB, 6)
  const disk = Buffer.from(contents)
  // Another content of a piece of which the sketch cannot tell.
  const block = disk.subarray(5 * BLOCK, 6 * BLOCK)
  const sketch = sketchOf(block)
  for (let n = 0; sketchOf(block).compare(sketch) !== 0 || n === 0; n++)
    noise(PIECE_BYTES, n + 1).copy(block, 3 * PIECE_BYTES)
  // And one that is seen, or nothing would be sketched.
  noise(12, 99).copy(block, 20 * PIECE_BYTES)
  const { sender, device } = await rig({ contents: Buffer.from(contents), minimum: 4096 })
  await sender.write(0, disk)
  await sender.flush()
  assert.ok(device.durable.equals(disk))
  assert.equal(sender.account.bySource.delta, 0)
  assert.ok(sender.account.bySource.literal >= 16 * KIB)
})

test('an end that does not know deltas is spoken to without them', async () => {
  const contents = noise(4 * MIB, 7)
  const disk = Buffer.from(contents)
  work(disk, 50, 8)
  const features = ENGINE_FEATURES.filter((feature) => feature !== FEATURE_DELTA)
  const { sender, device } = await rig({ contents: Buffer.from(contents), minimum: 4096, features })
  await sender.write(0, disk)
  await sender.flush()
  assert.ok(device.durable.equals(disk))
  assert.equal(sender.account.bySource.delta, 0)
})

test('where old content is of no use it is hardly sketched', async () => {
  const { sender, wire } = await rig({ contents: noise(16 * MIB, 9), minimum: 4096 })
  const disk = noise(16 * MIB, 10)
  // One block a chunk is found, or the chunk is wanted as a whole at once.
  for (let at = 0; at < disk.length; at += MIB) await sender.write(at, disk.subarray(at, at + MIB))
  await sender.flush()
  const { literal, digest } = sender.account.bySource
  assert.equal(literal, 16 * MIB)
  const spent = wire.bytes - literal - digest
  // Of the first 8 MiB; what comes then is known not to pay.
  assert.ok(spent < 192 * KIB, `${spent} bytes beside literals and digests`)
})

/** Whether a piece is another one that its sketch does not tell apart. */
function areAlike(one: Buffer, other: Buffer): boolean {
  const [sketch, otherSketch] = [sketchOf(one), sketchOf(other)]
  for (let piece = 0; piece < BLOCK / PIECE_BYTES; piece++) {
    const [from, to] = [piece * PIECE_BYTES, (piece + 1) * PIECE_BYTES]
    const same = one.compare(other, from, to, from, to) === 0
    if (!same && sketch.readUInt16BE(2 * piece) === otherSketch.readUInt16BE(2 * piece)) return true
  }
  return false
}

test('property: a body puts a chunk together, wherever it begins and whatever changed', () => {
  fc.assert(
    fc.property(
      fc.nat(3 * BLOCK),
      fc.integer({ min: 1, max: 6 * BLOCK }),
      fc.nat(),
      fc.array(fc.tuple(fc.nat(9 * BLOCK), fc.integer({ min: 1, max: 600 })), { maxLength: 12 }),
      fc.nat(255),
      fc.nat(255),
      (start, length, seed, changes, missingBits, oldBits) => {
        const end = start + length
        const before = noise(10 * BLOCK, seed)
        const now = Buffer.from(before)
        for (const [at, bytes] of changes) noise(604, seed + at).copy(now, at, 0, bytes)
        const count = blockCount(start, end)
        const missing = Buffer.alloc(Math.ceil(count / 8))
        const old = Buffer.from(missing)
        const first = Math.floor(start / BLOCK)
        const blockOf = (disk: Buffer, index: number): Buffer =>
          disk.subarray((first + index) * BLOCK, (first + index + 1) * BLOCK)
        const chunk = Buffer.from(now.subarray(start, end))
        const target = Buffer.from(chunk)
        const sketches: Buffer[] = []
        for (let index = 0; index < count; index++) {
          if ((missingBits & (1 << (index % 8))) === 0) continue
          setBlock(missing, index)
          const from = Math.max(start, (first + index) * BLOCK)
          const to = Math.min(end, (first + index + 1) * BLOCK)
          const isOld = (oldBits & (1 << (index % 8))) !== 0
          if (isOld) {
            setBlock(old, index)
            sketches.push(sketchOf(blockOf(before, index)))
            // What is alike in its 16 bits only, one piece in 65,536, is for the digest of the chunk to find.
            fc.pre(!areAlike(blockOf(before, index), blockOf(now, index)))
          }
          if (isOld) before.copy(target, from - start, from, to)
          else target.fill(0xee, from - start, to - start)
        }
        const blocks = { start, end, missing, old }
        const { body, literalBytes, deltaBytes } = bodyOf(blocks, Buffer.concat(sketches), chunk, (index) =>
          blockOf(now, index),
        )
        assert.ok(body.length <= bodyBytesMax(blocks))
        assert.deepEqual(applyBody(blocks, body, target), { literalBytes, deltaBytes })
        assert.ok(target.equals(chunk))
        // Cut short or too long it is no body.
        if (body.length > 0)
          assert.equal(applyBody(blocks, body.subarray(0, -1), Buffer.from(target)) ?? null, null)
        assert.equal(
          applyBody(blocks, Buffer.concat([body, Buffer.alloc(1)]), Buffer.from(target)),
          undefined,
        )
      },
    ),
    { numRuns: 300 },
  )
})

// ---- ends that lie ------------------------------------------------------------------------------------------------

const OLD = noise(MIB, 1).subarray(0, 8 * BLOCK)
const CHUNK = Buffer.from(OLD)
noise(ROW, 50).copy(CHUNK, 7 * BLOCK + 1000)
const DESCRIBED: DiskMessageBody = {
  type: 'describe',
  firstSeq: 0,
  offset: 0,
  lengths: Uint32Array.of(CHUNK.length),
  digests: sha256(CHUNK),
}
const HINTED: DiskMessageBody = {
  type: 'hints',
  chunks: [{ seq: 0, hints: hintsOf(CHUNK, 0, 0, CHUNK.length) }],
}
const BRIEF: DiskMessageBody = {
  type: 'brief',
  chunks: [{ seq: 0, hints: hintsOf(CHUNK, 0, 0, CHUNK.length, BRIEF_HINT_BYTES) }],
}
const literal = (data: Buffer): DiskMessageBody => ({
  type: 'literal',
  codec: 'raw',
  chunks: [{ seq: 0, length: data.length }],
  data,
})
const BLOCKS = {
  start: 0,
  end: CHUNK.length,
  missing: Buffer.from([0x80]),
  old: Buffer.from([0x80]),
}

test('a receiver sketches what it has, and takes the pieces', async () => {
  const { say, heard, device, ended } = loneReceiver()
  await say(DESCRIBED)
  await say(HINTED)
  const sketches = sketchOf(OLD.subarray(7 * BLOCK))
  assert.equal(sketches.length, SKETCH_BYTES)
  assert.deepEqual(heard.at(-1), {
    type: 'sketches',
    disk: 0,
    epoch: 1,
    chunks: [{ seq: 0, blocks: 8, missing: BLOCKS.missing, old: BLOCKS.old, sketches }],
  })
  const { body } = bodyOf(BLOCKS, sketches, CHUNK, (index) =>
    CHUNK.subarray(index * BLOCK, (index + 1) * BLOCK),
  )
  assert.ok(body.length <= 4 + 2 * PIECE_BYTES)
  await say(literal(body))
  assert.equal(ended(), undefined)
  assert.ok(device.bytes.subarray(0, CHUNK.length).equals(CHUNK))
})

test('hints that come before they are asked for are used when they are needed', async () => {
  const { say, heard } = loneReceiver(ENGINE_FEATURES, async () => {
    for (let turns = 0; turns < 40; turns++) await new Promise((resolve) => setImmediate(resolve))
  })
  await say(DESCRIBED)
  await say(BRIEF)
  for (let turns = 0; turns < 200; turns++) await new Promise((resolve) => setImmediate(resolve))
  assert.deepEqual(
    heard.map(({ type }) => type).filter((type) => type !== 'held'),
    ['sketches'],
  )
})

for (const [name, before, message, says] of [
  ['that were not agreed on', [DESCRIBED], BRIEF, /or a second time|not asked for/],
  ['a second time', [DESCRIBED, BRIEF], BRIEF, /a second time/],
  [
    'of too few blocks',
    [DESCRIBED],
    { type: 'brief', chunks: [{ seq: 0, hints: Buffer.alloc(28) }] },
    /7 of 8 blocks/,
  ],
  ['of a chunk that was not described', [], BRIEF, /chunk 0 was not/],
] as const satisfies readonly (readonly [string, readonly DiskMessageBody[], DiskMessageBody, RegExp])[]) {
  test(`BRIEF hints ${name} are a breach`, async () => {
    const agreed = name === 'that were not agreed on' ? [FEATURE_BLOCKS] : ENGINE_FEATURES
    const { say, ended, device } = loneReceiver(agreed)
    for (const one of before) await say(one)
    assert.equal(ended(), undefined)
    await say(message)
    assert.match(ended()?.message ?? '', says)
    assert.equal(device.writes, 0)
  })
}

for (const [name, body, says] of [
  ['of another chunk', Buffer.concat([Buffer.from([0, 0, 0, 1]), noise(PIECE_BYTES, 4)]), undefined],
  ['of too few bytes', Buffer.from([0, 0, 0]), /are no pieces/],
  ['that names more than it has', Buffer.from([0xff, 0xff, 0xff, 0xff, 1]), /are no pieces/],
  ['with bytes behind its pieces', Buffer.alloc(200), /are no pieces/],
  ['longer than its blocks', noise(BLOCK + 8, 4), /was not described/],
] as const) {
  test(`a body ${name} is never written`, async () => {
    const { say, heard, device, ended } = loneReceiver()
    await say(DESCRIBED)
    await say(HINTED)
    await say(literal(Buffer.from(body)))
    assert.equal(device.writes, 0)
    if (says !== undefined) assert.match(ended()?.message ?? '', says)
    else assert.equal(heard.at(-1)?.type, 'want')
  })
}

for (const [name, sketches, says] of [
  [
    'of a chunk that nobody asked for',
    {
      seq: 0,
      blocks: 8,
      missing: Buffer.from([1]),
      old: Buffer.from([1]),
      sketches: Buffer.alloc(SKETCH_BYTES),
    },
    /which was not asked for/,
  ],
  [
    'of a block that is there',
    {
      seq: 0,
      blocks: 8,
      missing: Buffer.from([2]),
      old: Buffer.from([1]),
      sketches: Buffer.alloc(SKETCH_BYTES),
    },
    /or of one that is there/,
  ],
  [
    'beyond the chunk',
    {
      seq: 0,
      blocks: 7,
      missing: Buffer.from([0x80]),
      old: Buffer.from([0x80]),
      sketches: Buffer.alloc(SKETCH_BYTES),
    },
    /SKETCHES/,
  ],
] as const) {
  test(`SKETCHES ${name} are a breach`, async () => {
    const { sender, wire } = await rig({ contents: Buffer.alloc(MIB) })
    // It is wanted, and the sender does not hear of it.
    wire.dropped.add(DISK_WANT)
    const described = Promise.withResolvers<void>()
    wire.tamper = (type, payload) => {
      if (type === DISK_SURVEY) described.resolve()
      return payload
    }
    await sender.write(0, noise(600 * KIB, 2))
    await described.promise
    const { type, payload } = encodeDiskMessage({ type: 'sketches', disk: 0, epoch: 7, chunks: [sketches] })
    wire.a.onFrame?.(type, Buffer.concat(payload as Uint8Array[]), 0)
    await assert.rejects(sender.flush(), says)
  })
}

test('a block that is not whole in its run has no hint, and no sketch of it is taken', async () => {
  const { sender, wire } = await rig({ contents: noise(MIB, 1), minimum: 512 })
  let asked = false
  wire.tamper = (type, payload) => {
    if (type !== DISK_HINTS) return payload
    const message = decodeDiskMessage(type, payload)
    assert.ok(message.type === 'hints')
    asked = true
    const { seq, hints } = message.chunks[0]!
    assert.ok(hints.subarray(0, 8).equals(Buffer.alloc(8)))
    const blocks = hints.length / 8
    const missing = Buffer.alloc(Math.ceil(blocks / 8))
    setBlock(missing, 0)
    const chunks = [{ seq, blocks, missing, old: missing, sketches: Buffer.alloc(SKETCH_BYTES) }]
    const lie = encodeDiskMessage({ type: 'sketches', disk: 0, epoch: 7, chunks })
    wire.a.onFrame?.(lie.type, Buffer.concat(lie.payload as Uint8Array[]), 0)
    return undefined
  }
  await sender.write(512, noise(300 * KIB, 2))
  await assert.rejects(sender.flush(), /block 0 is not whole in its run/)
  assert.ok(asked)
})
