/** Proofs of both ends over the whole engine: what they agree on, what they leave out, and what each of them finds. */
import assert from 'node:assert/strict'
import { after, test } from 'node:test'
import { LostError, ProtocolError, RefusedError } from '../../../lib/core/errors.ts'
import { KIB, MIB } from '../../../lib/core/units.ts'
import { LeafSlots } from '../../../lib/engine/leaf-assembly.ts'
import {
  type DiskMessageBody,
  decodeDiskMessage,
  ENGINE_FEATURES,
  encodeDiskMessage,
} from '../../../lib/wire/disk.ts'
import { DISK_PROVE, FEATURE_PROOF } from '../../../lib/wire/disk-proof.ts'
import { plainRoot } from './proof-rig.ts'
import { closeRigs, type DurableDevice, loneReceiver, noise, type Rig, rig } from './rig.ts'

after(closeRigs)

const LEAF = 64 * KIB
const SIZE = 2 * MIB

/** Within seconds. */
async function until(met: () => boolean): Promise<void> {
  for (let turns = 0; turns < 1000 && !met(); turns++) await settle(10)
  assert.ok(met())
}

const settle = (ms = 30): Promise<void> => new Promise((resolve) => setTimeout(resolve, ms))

/** The whole disk, as a mirror writes it. */
async function copy({ sender }: Pick<Rig, 'sender'>, disk: Buffer): Promise<void> {
  for (let at = 0; at < disk.length; at += 4 * LEAF)
    await sender.write(at, Buffer.from(disk.subarray(at, at + 4 * LEAF)))
}

function disk(seed: number): Buffer {
  const bytes = noise(SIZE, seed)
  // A hole, and a leaf that is zeroes in part.
  bytes.fill(0, 8 * LEAF, 11 * LEAF)
  bytes.fill(0, 12 * LEAF, 12 * LEAF + 20 * KIB)
  return bytes
}

for (const { name, contents } of [
  { name: 'an empty disk', contents: Buffer.alloc(SIZE) },
  { name: 'the same disk', contents: disk(1) },
  {
    name: 'an older version',
    contents: (() => {
      const old = disk(1)
      noise(5000, 9).copy(old, 3 * LEAF + 17_000)
      old.fill(7, 9 * LEAF, 9 * LEAF + 9000)
      return old
    })(),
  },
]) {
  for (const read of [false, true]) {
    test(`over ${name} both ends have the root of the disk${read ? ', read back' : ''}`, async () => {
      const target = disk(1)
      const joined = await rig({ contents: Buffer.from(contents), proof: { read } })
      await copy(joined, target)
      await joined.sender.flush()
      const { sender, receiver } = joined.proof!
      assert.equal(sender.cutOver?.root, plainRoot(target))
      assert.equal(receiver.cutOver?.root, plainRoot(target))
      assert.equal(sender.cutOver?.proved, SIZE / LEAF)
      assert.deepEqual(receiver.since, [])
      assert.equal(receiver.cutOver?.unread === null, !read)
    })
  }
}

test('a disk of odd size has a short last leaf', async () => {
  const size = 5 * LEAF + 4096
  const target = noise(size, 3)
  const joined = await rig({ contents: Buffer.alloc(size), proof: {} })
  await joined.sender.write(0, Buffer.from(target.subarray(0, 3 * LEAF)))
  await joined.sender.write(3 * LEAF, Buffer.from(target.subarray(3 * LEAF)))
  await joined.sender.flush()
  assert.equal(joined.proof!.sender.cutOver?.root, plainRoot(target))
  assert.equal(joined.proof!.sender.cutOver?.leaves, 6)
  assert.equal(joined.proof!.sender.cutOver?.proved, 6)
})

test('what was written in part is open, and is told, until it is written whole', async () => {
  const target = disk(1)
  const joined = await rig({ contents: Buffer.alloc(SIZE), proof: {} })
  const opened: { first: number; end: number }[][] = []
  joined.wire.tamper = (type, payload) => {
    if (type === DISK_PROVE) {
      const message = decodeDiskMessage(type, payload)
      if (message.type === 'prove') opened.push([...message.open])
    }
    return payload
  }
  await copy(joined, target)
  await joined.sender.flush()
  await joined.sender.write(5 * LEAF + 8192, noise(4096, 5))
  noise(4096, 5).copy(target, 5 * LEAF + 8192)
  await joined.sender.flush()
  const { sender, receiver } = joined.proof!
  assert.equal(sender.cutOver?.root, plainRoot(target, [{ first: 5, end: 6 }]))
  assert.equal(receiver.cutOver?.root, sender.cutOver?.root)
  assert.equal(sender.cutOver?.proved, SIZE / LEAF - 1)
  // Zeroed in part: zeroes still are, what was not is open.
  await joined.sender.writeZeroes(9 * LEAF + 4096, 4096)
  await joined.sender.writeZeroes(3 * LEAF + 4096, 4096)
  target.fill(0, 3 * LEAF + 4096, 3 * LEAF + 8192)
  await joined.sender.flush()
  assert.equal(sender.cutOver?.proved, SIZE / LEAF - 2)
  // Two pieces that touch are one run: the leaf is whole.
  const whole = noise(LEAF, 6)
  await Promise.all([
    joined.sender.write(5 * LEAF, Buffer.from(whole.subarray(0, 20_480))),
    joined.sender.write(5 * LEAF + 20_480, Buffer.from(whole.subarray(20_480))),
  ])
  whole.copy(target, 5 * LEAF)
  await joined.sender.writeZeroes(3 * LEAF, LEAF)
  target.fill(0, 3 * LEAF, 4 * LEAF)
  await joined.sender.flush()
  assert.equal(sender.cutOver?.proved, SIZE / LEAF)
  assert.equal(sender.cutOver?.root, plainRoot(target))
  assert.equal(receiver.cutOver?.root, plainRoot(target))
  assert.deepEqual(opened, [
    [],
    [{ first: 5, end: 6 }],
    [
      { first: 3, end: 4 },
      { first: 5, end: 6 },
    ],
    [],
  ])
})

test('a disk that is copied in part is proved in part: nothing is known of what nobody wrote', async () => {
  const contents = disk(4)
  const joined = await rig({ contents, proof: {} })
  await joined.sender.write(2 * LEAF, noise(3 * LEAF, 5))
  await joined.sender.flush()
  const { sender, receiver } = joined.proof!
  assert.equal(sender.cutOver?.proved, 3)
  assert.equal(receiver.cutOver?.proved, 3)
  assert.equal(
    sender.cutOver?.root,
    plainRoot(contents, [
      { first: 0, end: 2 },
      { first: 5, end: 32 },
    ]),
  )
})

test('leaves that are touched behind the barrier before it is answered are left out at both ends', async () => {
  const target = disk(1)
  let hold: Promise<void> | undefined
  const joined = await rig({
    contents: Buffer.alloc(SIZE),
    proof: {},
    break: (device) => {
      const { flush } = device
      device.flush = async () => {
        await hold
        await flush.call(device)
      }
    },
  })
  await copy(joined, target)
  await joined.sender.flush()
  const gate = Promise.withResolvers<void>()
  hold = gate.promise
  await joined.sender.write(6 * LEAF, noise(LEAF, 11))
  noise(LEAF, 11).copy(target, 6 * LEAF)
  const flushed = joined.sender.flush()
  await settle(60)
  const later = noise(LEAF, 12)
  const pending = joined.sender.write(20 * LEAF, Buffer.from(later))
  await settle(100)
  gate.resolve()
  await Promise.all([flushed, pending])
  const { sender, receiver } = joined.proof!
  const leftOut = [{ first: 20, end: 21 }]
  assert.equal(receiver.cutOver?.root, sender.cutOver?.root)
  // The answer was on its way before what is left out came, or after: either way both agree.
  assert.ok([plainRoot(target), plainRoot(target, leftOut)].includes(sender.cutOver!.root))
  assert.deepEqual(receiver.since, leftOut)
  assert.deepEqual(sender.since, leftOut)
  later.copy(target, 20 * LEAF)
  await joined.sender.flush()
  assert.equal(sender.cutOver?.root, plainRoot(target))
  assert.equal(receiver.cutOver?.root, plainRoot(target))
  assert.deepEqual(sender.since, [])
})

test('without room to put leaves together they are read back', async () => {
  const target = disk(1)
  const joined = await rig({
    contents: Buffer.alloc(SIZE),
    proof: { slots: new LeafSlots({ bytesMax: LEAF }) },
  })
  let reads = 0
  const { read } = joined.device
  joined.device.read = async (offset, length) => {
    reads++
    return await read.call(joined.device, offset, length)
  }
  await copy(joined, target)
  await joined.sender.flush()
  assert.equal(joined.proof!.sender.cutOver?.root, plainRoot(target))
  assert.equal(joined.proof!.sender.cutOver?.proved, SIZE / LEAF)
  assert.ok(reads > 0)
})

async function disproved(joined: Rig, work: () => Promise<unknown>, text: RegExp): Promise<void> {
  await assert.rejects(work, (error: unknown) => {
    assert.ok(error instanceof RefusedError)
    assert.equal(error.errno, 5)
    assert.match(error.message, text)
    return true
  })
  await settle()
  assert.match(joined.receiverError()?.message ?? '', /^proof: vda: /)
  await assert.rejects(joined.sender.flush(), 'I2: what is lost stays lost')
}

test('I1: a write that goes to another place, or older bytes over newer ones, is found before the FLUSH is answered', async () => {
  for (const fault of ['place', 'order'] as const) {
    const target = disk(1)
    const joined = await rig({ contents: Buffer.alloc(SIZE), proof: {} })
    await copy(joined, target)
    await joined.sender.flush()
    const { write } = joined.proof!.receiver.device
    // An engine that is wrong: what it hands to the device is not what was described.
    let old: Buffer | undefined
    joined.proof!.receiver.device.write = async (offset, data, flags) => {
      if (fault === 'place') await write(offset + 4096, data, flags)
      else {
        await write(offset, data, flags)
        if (old !== undefined) await write(offset, old, flags)
        old = Buffer.from(data)
      }
    }
    await joined.sender.write(4 * LEAF, noise(LEAF, 21))
    if (fault === 'order') {
      await joined.sender.flush()
      await joined.sender.write(4 * LEAF, noise(LEAF, 22))
    }
    await disproved(
      joined,
      () => joined.sender.flush(),
      /the far side's disk is not this one: root [0-9a-f]{64} there, [0-9a-f]{64} here/,
    )
    assert.match(joined.receiverError()?.message ?? '', /not the one at the source/)
  }
})

/** What a disk may do to bytes that it has been given. */
const FAULTS: readonly { readonly name: string; readonly arm: (device: DurableDevice) => void }[] = [
  {
    name: 'flips a bit after it was written',
    arm: (device) => {
      const { write } = device
      device.write = async (offset, data) => {
        await write.call(device, offset, data)
        device.bytes[offset + 1000]! ^= 4
      }
    },
  },
  {
    name: 'loses a write',
    arm: (device) => {
      device.write = async () => undefined
    },
  },
  {
    name: 'loses zeroes',
    arm: (device) => {
      device.writeZeroes = async () => undefined
    },
  },
  {
    name: 'cannot be read',
    arm: (device) => {
      device.read = async () => {
        throw new RefusedError('bad sector', { errno: 5 })
      }
    },
  },
]

for (const { name, arm } of FAULTS) {
  test(`a disk that ${name} is found when it is read back, while a FLUSH waits`, async () => {
    const joined = await rig({ contents: Buffer.alloc(SIZE), proof: { read: true } })
    await copy(joined, disk(1))
    await joined.sender.flush()
    await until(() => joined.proof!.receiver.unread === 0)
    arm(joined.device)
    if (name === 'loses zeroes') await joined.sender.writeZeroes(4 * LEAF, LEAF)
    else await joined.sender.write(4 * LEAF, noise(LEAF, 31))
    await disproved(joined, () => joined.sender.flush(), /proof: vda: (what was read back )?at 262144/)
  })
}

test('what was written before the first FLUSH is read back behind it, and a fault there ends the session', async () => {
  const gate = Promise.withResolvers<void>()
  const joined = await rig({
    contents: Buffer.alloc(SIZE),
    proof: { read: true },
    break: (device) => {
      const { read, write } = device
      device.write = async (offset, data) => {
        await write.call(device, offset, data)
        if (offset <= 7 * LEAF && offset + data.length > 7 * LEAF) device.bytes[7 * LEAF]! ^= 1
      }
      device.read = async (offset, length) => {
        await gate.promise
        return await read.call(device, offset, length)
      }
    },
  })
  await copy(joined, disk(1))
  await joined.sender.flush()
  // The FLUSH did not wait for the whole disk.
  assert.ok(joined.proof!.sender.cutOver!.unread! > 20)
  gate.resolve()
  await until(() => joined.sender.lost !== undefined)
  await disproved(
    joined,
    () => joined.sender.write(0, noise(LEAF, 1)),
    /proof: vda: what was read back at 458752 is not/,
  )
})

test('a sound disk is read back in the background, and the next FLUSH finds it read', async () => {
  const target = disk(1)
  let readBytes = 0
  const joined = await rig({
    contents: Buffer.alloc(SIZE),
    proof: { read: true },
    break: (device) => {
      const { read } = device
      device.read = async (offset, length) => {
        readBytes += length
        return await read.call(device, offset, length)
      }
    },
  })
  await copy(joined, target)
  assert.equal(readBytes, 0)
  await joined.sender.flush()
  await until(() => joined.proof!.receiver.unread === 0)
  assert.ok(readBytes >= SIZE - 4 * LEAF)
  await joined.sender.write(0, noise(LEAF, 2))
  noise(LEAF, 2).copy(target, 0)
  const before = readBytes
  await joined.sender.flush()
  assert.ok(readBytes - before <= 4 * LEAF, `${readBytes - before} bytes were read while it waited`)
  assert.equal(joined.proof!.sender.cutOver?.unread, 0)
  assert.equal(joined.proof!.receiver.cutOver?.unread, 0)
  assert.equal(joined.proof!.sender.cutOver?.root, plainRoot(target))
})

for (const { name, features } of [
  { name: 'a peer that knows no proofs', features: ENGINE_FEATURES },
  { name: 'a peer without SURVEY', features: ['blocks', 'stream', FEATURE_PROOF] },
]) {
  test(`${name} gets FLUSH as ever, and nothing is proved`, async () => {
    const target = disk(1)
    const joined = await rig({ contents: Buffer.alloc(SIZE), proof: {}, features })
    const types = new Set<number>()
    joined.wire.tamper = (type, payload) => {
      types.add(type)
      return payload
    }
    await copy(joined, target)
    await joined.sender.flush()
    assert.ok(joined.device.durable.equals(target))
    assert.equal(joined.proof!.sender.cutOver, undefined)
    assert.ok(!types.has(DISK_PROVE))
  })
}

test('a map that cannot be kept at either end fails nothing, and proves nothing, whatever was proved before', async () => {
  for (const end of ['sender', 'receiver'] as const) {
    for (const before of [false, true]) {
      const target = disk(1)
      const joined = await rig({ contents: Buffer.alloc(SIZE), proof: {} })
      const { sender, receiver } = joined.proof!
      if (before) {
        await joined.sender.write(0, noise(LEAF, 2))
        await joined.sender.flush()
        assert.notEqual(sender.cutOver, undefined)
      }
      await joined.proof![end].map.close()
      await copy(joined, target)
      await joined.sender.flush()
      assert.ok(joined.device.durable.equals(target))
      assert.equal(sender.cutOver, undefined)
      assert.equal(receiver.cutOver, undefined)
      assert.match(sender.reason ?? '', end === 'sender' ? /closed/ : /keeps no map/)
      assert.match(receiver.reason ?? '', end === 'sender' ? /proves nothing/ : /closed/)
    }
  }
})

test('what is written while it is read back is not judged by the older bytes', async () => {
  const target = disk(1)
  const gate = Promise.withResolvers<void>()
  const [older, newer] = [noise(LEAF, 41), noise(LEAF, 42)]
  let held = false
  const joined = await rig({
    contents: Buffer.alloc(SIZE),
    proof: { read: true },
    break: (device) => {
      const { read } = device
      device.read = async (offset, length) => {
        const bytes = await read.call(device, offset, length)
        const at = 4 * LEAF - offset
        if (held || at < 0 || !bytes.subarray(at, at + LEAF).equals(older)) return bytes
        held = true
        await gate.promise
        return bytes
      }
    },
  })
  await copy(joined, target)
  await joined.sender.flush()
  await until(() => joined.proof!.receiver.unread === 0)
  await joined.sender.write(4 * LEAF, Buffer.from(older))
  await until(() => held)
  await joined.sender.write(4 * LEAF, Buffer.from(newer))
  newer.copy(target, 4 * LEAF)
  await until(() => joined.device.bytes.subarray(4 * LEAF, 5 * LEAF).equals(newer))
  gate.resolve()
  await until(() => joined.proof!.receiver.unread === 0)
  await joined.sender.flush()
  assert.equal(joined.proof!.sender.cutOver?.root, plainRoot(target))
})

test('a PROVE that was not agreed on, comes late, or speaks of leaves that are none, is a breach', async () => {
  const open = [{ first: 0, end: 1 }]
  const lone = loneReceiver()
  await lone.say({ type: 'prove', id: 1, barrier: 0, read: false, open })
  assert.match(lone.ended()?.message ?? '', /PROVE: it was not agreed on/)
  const joined = await rig({ contents: Buffer.alloc(SIZE), proof: {} })
  const { receiver, sender } = joined.proof!
  assert.throws(() => receiver.asked({ barrier: 4, read: false, open }, 5), /5 chunks were described/)
  const beyond = [{ first: 31, end: 33 }]
  assert.throws(() => receiver.asked({ barrier: 5, read: false, open: beyond }, 5), ProtocolError)
  await sender.ask(900)
  await assert.rejects(
    sender.answer(900, { root: Buffer.alloc(32), unread: 0, excluded: beyond }),
    ProtocolError,
  )
  await sender.answer(900, undefined)
})

test('where a receiver keeps no map although it was agreed on, a PROVE is a FLUSH', async () => {
  const lone = loneReceiver([...ENGINE_FEATURES, FEATURE_PROOF])
  await lone.say({ type: 'prove', id: 7, barrier: 0, read: true, open: [] })
  await until(() => lone.heard.some((message) => message.type === 'flushed' && message.id === 7))
})

/** What a far side says out of turn. */
function say({ wire }: Rig, message: DiskMessageBody): void {
  const { type, payload } = encodeDiskMessage({ ...message, disk: 0, epoch: 7 })
  wire.a.onFrame!(type, Buffer.concat(payload as Uint8Array[]), 0)
}

test('I1: a FLUSHED that comes before the FLUSH was sent is no answer to it', async () => {
  const joined = await rig({ contents: Buffer.alloc(SIZE), proof: {} })
  let sent = false
  joined.wire.tamper = (type, payload) => {
    if (type !== DISK_PROVE) return payload
    sent = true
    return undefined
  }
  await joined.sender.write(0, noise(LEAF, 1))
  await joined.sender.settle()
  let answered = false
  const flushed = joined.sender.flush().then(() => {
    answered = true
  })
  flushed.catch(() => undefined)
  // At any moment before it.
  for (let turns = 0; turns < 1000 && !sent; turns++) {
    for (let id = 1; id < 10; id++) say(joined, { type: 'flushed', id })
    await Promise.resolve()
  }
  assert.equal(sent, true)
  await settle()
  assert.equal(answered, false)
  joined.wire.cut(new LostError('the end of the test'))
  await assert.rejects(flushed)
})

test('I1: a second answer says nothing while the first one is compared', async () => {
  const joined = await rig({ contents: Buffer.alloc(SIZE), proof: {} })
  const prove = Promise.withResolvers<number>()
  joined.wire.tamper = (type, payload) => {
    if (type !== DISK_PROVE) return payload
    const message = decodeDiskMessage(type, payload)
    if (message.type === 'prove') prove.resolve(message.id)
    return undefined
  }
  await joined.sender.write(0, noise(LEAF, 1))
  const flushed = joined.sender.flush()
  const id = await prove.promise
  say(joined, { type: 'proved', id, root: Buffer.alloc(32, 9), unread: 0, excluded: [] })
  say(joined, { type: 'flushed', id })
  await assert.rejects(flushed, /the far side's disk is not this one/)
})
