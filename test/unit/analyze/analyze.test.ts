/**
 * swam analyze on raw images made by hand, of which each byte's source is known; and what happens when what arrives, or what
 * nobody wrote, is not the image.
 */
import assert from 'node:assert/strict'
import { randomBytes } from 'node:crypto'
import { chmod, mkdir, open, writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import { test } from 'node:test'
import { setTimeout as sleep } from 'node:timers/promises'
import type { BlockDevice } from '../../../lib/block/device.ts'
import { ImageSource } from '../../../lib/catalog/image-files.ts'
import { ANALYZE_EXPORTS_MAX, ANALYZE_IMAGES_MAX, ANALYZE_READS_MAX } from '../../../lib/core/limits.ts'
import { KIB, MIB } from '../../../lib/core/units.ts'
import { DiskAccount } from '../../../lib/engine/account.ts'
import { type AnalyzeReport, analyze } from '../../../server/analyze/analyze.ts'
import { SparseImage } from '../../../server/analyze/sparse-image.ts'
import { checkAccount, readAhead } from '../../../server/analyze/transfer.ts'
import { EXIT, exitCodeOf } from '../../../server/cli/exit-codes.ts'
import { emptyBySource } from '../../../server/report.ts'
import { noise } from '../engine/rig.ts'
import { GAP, image, inFolder, QUICK, swam } from './rig.ts'

const KNOWN = noise(2 * MIB, 1)
const NEW = noise(3 * MIB, 2)
const OLD = noise(MIB, 3)
/** What of an incompressible literal is no payload: headers, digests, acknowledgements. */
const OVERHEAD_BYTES = 64 * KIB

/** Zeroes, content of another image, new content, again what came before, content that lies in place. */
const SIZE = 13 * MIB + 512
const AT = { known: MIB, new: 4 * MIB, again: 8 * MIB - GAP, old: 11 * MIB + GAP }

async function target(folder: string): Promise<string> {
  return await image(join(folder, 'target.raw'), SIZE, [
    [AT.known, KNOWN],
    [AT.new, NEW],
    [AT.again, NEW],
    [AT.old, OLD.subarray(0, 512 * KIB)],
  ])
}

function bySource(found: AnalyzeReport): AnalyzeReport['bySource'] {
  return { ...found.bySource, digest: 0 }
}

test('every byte is told by its source', async () => {
  await inFolder(async (folder) => {
    const path = await target(folder)
    const have = await image(join(folder, 'have.raw'), 16 * MIB, [[7 * MIB, KNOWN]])
    const inPlace = await image(join(folder, 'old.raw'), SIZE, [[AT.old, OLD]])
    const found = await analyze({ ...QUICK, target: path, have: [have], inPlace })
    const data = 2 * MIB + 6 * MIB + 512 * KIB
    assert.deepEqual(bySource(found), {
      ...emptyBySource(),
      zero: SIZE - data,
      chunk: 2 * MIB,
      literal: 3 * MIB,
      session: 3 * MIB,
      inPlace: 512 * KIB,
    })
    assert.equal(found.dataBytes, data)
    assert.equal(found.size, SIZE)
    assert.ok(found.bySource.digest > (data / (256 * KIB)) * 32, `digests: ${found.bySource.digest}`)
    const overhead = found.wireBytes - 3 * MIB
    assert.ok(overhead > found.bySource.digest && overhead < OVERHEAD_BYTES, `overhead: ${overhead}`)
    assert.equal(found.verified, true)
  })
})

test('without anything at the far side all that is not zero is sent, and what compresses, compressed', async () => {
  await inFolder(async (folder) => {
    const text = Buffer.alloc(MIB, 'all work and no play ')
    const path = await image(join(folder, 'target.raw'), 4 * MIB, [[MIB, text]])
    const found = await analyze({ ...QUICK, target: path })
    assert.equal(found.bySource.zero, 3 * MIB)
    assert.equal(found.bySource.literal + found.bySource.session, MIB)
    assert.ok(found.wireBytes < OVERHEAD_BYTES, `wire: ${found.wireBytes}`)
  })
})

test('the image itself at the far side: nothing is sent but digests', async () => {
  await inFolder(async (folder) => {
    const path = await target(folder)
    const data = 8 * MIB + 512 * KIB
    const same = await analyze({ ...QUICK, target: path, inPlace: path })
    assert.deepEqual(bySource(same), { ...emptyBySource(), zero: SIZE - data, inPlace: data })
    const had = await analyze({ ...QUICK, target: path, have: [path] })
    assert.equal(had.bySource.literal, 0)
    assert.ok(had.wireBytes < OVERHEAD_BYTES, `wire: ${had.wireBytes}`)
  })
})

test('an image of zeroes has no data, and its rate is zero', async () => {
  await inFolder(async (folder) => {
    const found = await analyze({ ...QUICK, target: await image(join(folder, 'zero.raw'), 8 * MIB, []) })
    assert.deepEqual(bySource(found), { ...emptyBySource(), zero: 8 * MIB })
    assert.equal(found.dataBytes, 0)
    assert.equal(found.mbPerSecond, 0)
    assert.ok(found.wireBytes < KIB)
  })
})

test('what lies in place and is zero in the image is zeroed', async () => {
  await inFolder(async (folder) => {
    const path = await image(join(folder, 'target.raw'), 4 * MIB, [[MIB, OLD]])
    const inPlace = await image(join(folder, 'old.raw'), 4 * MIB, [
      [MIB, OLD],
      [3 * MIB, OLD],
    ])
    const found = await analyze({ ...QUICK, target: path, inPlace })
    assert.deepEqual(bySource(found), { ...emptyBySource(), zero: 3 * MIB, inPlace: MIB })
  })
})

test('longer than a run, the figures are the same each time', async () => {
  await inFolder(async (folder) => {
    const long = noise(24 * MIB, 4)
    const path = await image(join(folder, 'target.raw'), 32 * MIB, [[MIB, long]])
    const have = await image(join(folder, 'have.raw'), 40 * MIB, [[9 * MIB, long]])
    const first = await analyze({ ...QUICK, target: path, have: [have] })
    // A run is cut at its end, wherever that lies: what is cut otherwise than in the index is found by its blocks.
    const { block, literal } = first.bySource
    assert.ok(block > 0 && block < 4 * 256 * KIB && literal === 0, `${block} by blocks, ${literal} sent`)
    const again = await analyze({ ...QUICK, target: path, have: [have] })
    // In how many messages digests and hints go depends on turns of the event loop: a head more or less.
    const { digest, ...sources } = again.bySource
    assert.deepEqual({ ...sources, digest: first.bySource.digest }, first.bySource)
    assert.ok(Math.abs(digest - first.bySource.digest) < 100, `${digest}, at first ${first.bySource.digest}`)
  })
})

test('small runs are looked for before they are sent, however idle the link is', async () => {
  await inFolder(async (folder) => {
    const runs = Array.from({ length: 20 }, (_, index) => noise(64 * KIB, 100 + index))
    const at = (step: number) => runs.map((bytes, index) => [index * step, bytes] as const)
    const path = await image(join(folder, 'target.raw'), 8 * MIB, at(128 * KIB))
    const have = await image(join(folder, 'have.raw'), 8 * MIB, at(256 * KIB))
    const found = await analyze({ ...QUICK, target: path, have: [have] })
    assert.deepEqual(bySource(found), {
      ...emptyBySource(),
      zero: 8 * MIB - 20 * 64 * KIB,
      chunk: 20 * 64 * KIB,
    })
  })
})

test('data that lie shifted by no multiple of 512 bytes are found: at least 85% of them', async () => {
  await inFolder(async (folder) => {
    const data = noise(24 * MIB, 30)
    const path = await image(join(folder, 'target.raw'), 32 * MIB, [[MIB, data]])
    for (const shift of [1, 1000, 4095]) {
      const have = await image(join(folder, `tar-${shift}.raw`), 32 * MIB, [[2 * MIB + shift, data]])
      const { bySource, dataBytes } = await analyze({ ...QUICK, target: path, have: [have] })
      assert.ok(
        bySource.chunk >= 0.85 * dataBytes,
        `${bySource.chunk} of ${dataBytes} bytes, shifted by ${shift}`,
      )
    }
  })
})

test('the same files in another order, in whole blocks: what is sent is what is new', async () => {
  await inFolder(async (folder) => {
    const files = Array.from({ length: 600 }, (_, at) => noise(4 * KIB * (1 + (at % 9)), at + 100))
    const total = files.reduce((sum, { length }) => sum + length, 0)
    const fresh = noise(4 * KIB, 9999)
    const have = await image(join(folder, 'have.raw'), 32 * MIB, [[MIB, Buffer.concat(files)]])
    const shuffled = files.map((_, at) => files[(at * 251) % files.length]!)
    const parts: [number, Buffer][] = [[2 * MIB, Buffer.concat([...shuffled, fresh])]]
    const path = await image(join(folder, 'target.raw'), 32 * MIB, parts)
    const found = await analyze({ ...QUICK, target: path, have: [have] })
    assert.ok(
      found.bySource.literal <= 8 * KIB,
      `${found.bySource.literal} bytes of ${fresh.length} that are new`,
    )
    assert.ok(found.bySource.block >= 0.8 * total, `${found.bySource.block} of ${total} bytes by blocks`)
    assert.ok(found.wireBytes < 8 * KIB + total * 0.005, `${found.wireBytes} bytes on the wire`)
  })
})

test('a return trip of what did not change costs at most 160 KB for 800 MB', async () => {
  await inFolder(async (folder) => {
    const parts = Array.from({ length: 48 }, (_, at): [number, Buffer] => [at * 3 * MIB, noise(MIB, at + 1)])
    const path = await image(join(folder, 'target.raw'), 192 * MIB, parts)
    const found = await analyze({ ...QUICK, target: path, inPlace: path })
    assert.equal(found.bySource.inPlace, 48 * MIB)
    // And two KB to open the disk, to flush and to close it.
    assert.ok(found.wireBytes <= 2000 + (160_000 / 800e6) * found.dataBytes, `${found.wireBytes} bytes`)
  })
})

test('what comes twice is sent once, even while a part of it is still being written', async () => {
  await inFolder(async (folder) => {
    const filler = randomBytes(17 * MIB)
    const path = await image(join(folder, 'target.raw'), 40 * MIB, [
      [MIB, NEW],
      [5 * MIB, filler],
      [22 * MIB + GAP, Buffer.from(filler).reverse()],
      [39 * MIB + 2 * GAP, NEW.subarray(0, 512 * KIB)],
    ])
    // The blocks that chunks of the first copy share come late: after the second copy was looked for.
    const wrapDevice = (device: BlockDevice): BlockDevice =>
      faulty(device, {
        write: async (offset, data) => {
          if (data.length === 4 * KIB && offset < 4 * MIB) await sleep(1500)
          await device.write(offset, data)
        },
      })
    const found = await analyze({ ...QUICK, target: path, wrapDevice })
    // Its last chunk ends elsewhere.
    assert.ok(found.bySource.session > 512 * KIB - 256 * KIB, `${found.bySource.session}`)
  })
})

test('an account that does not add up is an error', () => {
  const account = new DiskAccount('', 4 * MIB)
  const disk = { path: 'a', size: 4 * MIB }
  account.applied('literal', MIB)
  account.applied('zero', 3 * MIB)
  checkAccount(disk, MIB, account)
  assert.throws(() => checkAccount(disk, 2 * MIB, account), /2097152 bytes of 4194304 were read/)
  account.applied('chunk', KIB)
  assert.throws(() => checkAccount(disk, MIB, account), /the far end applied 1049600, and 3145728 zeroes/)
})

// ---- faults --------------------------------------------------------------------------------------------------

/** A device that is told of some calls something else than the receiver said. */
function faulty(
  device: BlockDevice,
  faults: Partial<Pick<BlockDevice, 'write' | 'writeZeroes'>>,
): BlockDevice {
  return new Proxy(device, {
    get(inner, property) {
      const own: unknown = Reflect.get(faults, property)
      if (own !== undefined) return own
      const value: unknown = Reflect.get(inner, property, inner)
      return typeof value === 'function' ? value.bind(inner) : value
    },
  })
}

const faults: readonly {
  readonly name: string
  readonly fault: (device: BlockDevice) => Partial<Pick<BlockDevice, 'write' | 'writeZeroes'>>
  readonly message: RegExp
}[] = [
  {
    name: 'a byte of a write',
    fault: (device) => ({
      write: async (offset, data) => {
        const changed = Buffer.from(data)
        if (offset >= AT.new) changed[100]! ^= 1
        await device.write(offset, changed)
      },
    }),
    message:
      /verify .*target\.raw: write of \d+ bytes at \d+: byte \d+: expected 0x[0-9a-f]{2}, found 0x[0-9a-f]{2}$/,
  },
  {
    name: 'a write at another place',
    fault: (device) => ({
      write: (offset, data) => device.write(offset === AT.new ? offset - 4 * KIB : offset, data),
    }),
    message: /verify .*target\.raw: write of/,
  },
  {
    name: 'a write that is not done',
    fault: (device) => ({
      write: async (offset, data) => {
        if (offset < AT.again) await device.write(offset, data)
      },
    }),
    message: /verify .*target\.raw: \d+ bytes that nobody wrote at \d+: byte \d+: expected 0x/,
  },
  {
    name: 'zeroes that are not written',
    fault: () => ({ writeZeroes: async () => {} }),
    message: /verify .*target\.raw: \d+ bytes that nobody wrote at \d+: byte \d+: expected 0x00, found 0x/,
  },
  {
    name: 'zeroes where there are none',
    fault: (device) => ({ writeZeroes: async () => await device.writeZeroes(0, 4 * MIB) }),
    message:
      /verify .*target\.raw: zeroing of 4194304 bytes at \d+: byte \d+: expected 0x[0-9a-f]{2}, found 0x00$/,
  },
  {
    name: 'a part of a block',
    fault: (device) => ({ write: (offset, data) => device.write(offset, data.subarray(0, 100)) }),
    message: /verify .*target\.raw: write of 100 bytes at \d+: expected whole blocks of 4096 below \d+$/,
  },
]

for (const { name, fault, message } of faults) {
  test(`verification fails: ${name}`, async () => {
    await inFolder(async (folder) => {
      const path = await target(folder)
      const inPlace = await image(join(folder, 'old.raw'), SIZE, [
        [AT.old, OLD],
        [0, OLD.subarray(0, 64 * KIB)],
      ])
      const wrapDevice = (device: BlockDevice): BlockDevice => faulty(device, fault(device))
      await assert.rejects(analyze({ ...QUICK, target: path, inPlace, wrapDevice }), { message })
    })
  })
}

test('an image that is written to meanwhile is told as that', async () => {
  await inFolder(async (folder) => {
    const path = await target(folder)
    const wrapDevice = (device: BlockDevice): BlockDevice =>
      faulty(device, {
        write: async (offset, data) => {
          await using file = await open(path, 'r+')
          await file.write(Buffer.from('changed'), 0, 7, offset)
          await device.write(offset, data)
        },
      })
    await assert.rejects(
      analyze({ ...QUICK, target: path, wrapDevice }),
      /target\.raw: it was written to while/,
    )
  })
})

test('an aborted analysis says why, and stops', async () => {
  await inFolder(async (folder) => {
    const abort = new AbortController()
    const wrapDevice = (device: BlockDevice): BlockDevice =>
      faulty(device, {
        write: async () => {
          abort.abort(new Error('enough'))
          await new Promise(() => {})
        },
      })
    const path = await target(folder)
    await assert.rejects(
      analyze({ ...QUICK, target: path, wrapDevice, signal: abort.signal }),
      /^Error: enough$/,
    )
  })
})

// ---- the command ---------------------------------------------------------------------------------------------

test('as text and as JSON, by the command', async () => {
  await inFolder(async (folder) => {
    const path = await target(folder)
    const have = join(folder, 'images')
    await mkdir(have)
    await image(join(have, 'one.raw'), 16 * MIB, [[7 * MIB, KNOWN]])
    await writeFile(
      join(have, 'other.img'),
      Buffer.concat([Buffer.from('QFI\xfb', 'latin1'), noise(MIB - 4, 5)]),
    )
    const json = await swam('analyze', path, '--have', have, '--json')
    assert.equal(json.code, 0, json.err)
    assert.match(json.err, /^swam: left out: .*other\.img begins as a qcow2: say qcow2:.* or raw:.*\n$/)
    const report = JSON.parse(json.out) as AnalyzeReport
    assert.deepEqual(Object.keys(report), [
      'version',
      'target',
      'format',
      'size',
      'dataBytes',
      'wireBytes',
      'bySource',
      'seconds',
      'mbPerSecond',
      'sha256Ratio',
      'verified',
      'haveImages',
      'indexSeconds',
    ])
    assert.equal(report.bySource.chunk, 2 * MIB)
    assert.equal(report.haveImages, 1)
    const near = (found: number, expected: number): boolean => Math.abs(found / expected - 1) < 0.01
    assert.ok(near(report.mbPerSecond, report.dataBytes / report.seconds / 1e6), json.out)
    assert.ok(report.sha256Ratio > 0)

    const text = await swam('analyze', path, '--have', `raw:${have}`)
    assert.equal(text.code, 0, text.err)
    assert.equal(text.err, '')
    assert.match(text.out, /target\.raw: raw, 13\.0 MiB, of it 8\.5 MiB not zero\n/)
    assert.match(text.out, /the far side has 2 images, scanned in /)
    assert.match(text.out, /^chunks of other images +2\.0 MiB +23\.5 %$/m)
  })
})

test('an image in a directory that is the analyzed one is not its own source', async () => {
  await inFolder(async (folder) => {
    const found = await swam('analyze', await target(folder), '--have', folder, '--json')
    assert.equal(found.code, 0, found.err)
    assert.match(found.err, /target\.raw: left out: it is the image that is analyzed\n/)
    assert.equal((JSON.parse(found.out) as AnalyzeReport).bySource.chunk, 0)
  })
})

test('more images at the far side than a host knows are refused; of its qcow2 some are opened, the others named', async () => {
  await inFolder(async (folder) => {
    const path = await image(join(folder, 'target.raw'), MIB, [])
    const many = join(folder, 'many')
    await mkdir(many)
    for (let at = 0; at <= ANALYZE_IMAGES_MAX; at++) await image(join(many, `${at}.raw`), MIB, [])
    await assert.rejects(
      analyze({ ...QUICK, target: path, have: [many] }),
      new RegExp(`expected at most ${ANALYZE_IMAGES_MAX} images`),
    )
    const layers = join(folder, 'layers')
    await mkdir(layers)
    for (let at = 0; at < ANALYZE_EXPORTS_MAX + 2; at++)
      await image(join(layers, `${at}.qcow2`), MIB, [[0, Buffer.from('no image at all')]])
    const notes: string[] = []
    await analyze({ ...QUICK, target: path, have: [`qcow2:${layers}`], onNote: (text) => notes.push(text) })
    assert.equal(notes.length, ANALYZE_EXPORTS_MAX + 2)
    const over = notes.filter((text) => text.includes(`expected at most ${ANALYZE_EXPORTS_MAX} qcow2 images`))
    assert.equal(over.length, 2)
  })
})

test('of the image some pieces are read ahead', async () => {
  await inFolder(async (folder) => {
    const source = await ImageSource.open(
      await image(join(folder, 'a.raw'), 32 * MIB, [[0, Buffer.alloc(32 * MIB, 1)]]),
    )
    let reads = 0
    source.read = () => {
      reads++
      return new Promise(() => undefined)
    }
    void readAhead(await SparseImage.of(source)).next()
    await sleep(50)
    assert.equal(reads, ANALYZE_READS_MAX)
    await source.close()
  })
})

test('what the disk cannot read is told with its place', async () => {
  // The kernel's own file of which no byte at 0 can be read: EIO, as of a bad sector.
  const { code, out, err } = await swam('analyze', '/proc/self/mem')
  assert.deepEqual([code, out], [EXIT.failed, ''])
  assert.match(err, /^swam: read image \/proc\/\d+\/mem: \d+ bytes at 0: EIO: i\/o error, read\n$/)
})

test('an image that may not be read is exit code 4', async () => {
  await inFolder(async (folder) => {
    const path = await target(folder)
    await chmod(path, 0)
    await chmod(folder, 0o755)
    // Root may read everything.
    const root = process.getuid?.() === 0
    if (root) process.seteuid?.(65534)
    const refused = await analyze({ ...QUICK, target: path })
      .catch((error: unknown) => error)
      .finally(() => {
        if (root) process.seteuid?.(0)
      })
    assert.equal(exitCodeOf(refused), EXIT.notAllowed)
    assert.equal((refused as Error).message, `${path}: not allowed to read it`)
  })
})
