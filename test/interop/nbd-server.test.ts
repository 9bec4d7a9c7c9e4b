/**
 * Our NBD server against real clients: libnbd (nbdinfo, nbdcopy, nbdsh) and QEMU (qemu-io, qemu-img), on a memory and a
 * file device. The commands are spelled out, and so is what they must print.
 */
import assert from 'node:assert/strict'
import { randomBytes } from 'node:crypto'
import { readFile, stat, writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import { describe, test } from 'node:test'
import type { BlockDevice } from '../../lib/block/device.ts'
import { FaultyDevice } from '../../lib/block/faulty.ts'
import { openFileDevice } from '../../lib/block/file.ts'
import { MemoryDevice } from '../../lib/block/memory.ts'
import { inFolder, run, type Served, serving, succeed } from './nbd-peers.ts'

const MIB = 1024 * 1024
const SIZE = 64 * MIB

/** Data in three places, the rest a hole. */
function image(): Buffer {
  const bytes = Buffer.alloc(SIZE)
  for (const [at, length] of [
    [0, MIB],
    [10 * MIB, 5 * MIB + 4096],
    [SIZE - 65536, 65536],
  ] as const) {
    randomBytes(length).copy(bytes, at)
  }
  return bytes
}

const kinds: readonly [string, (work: (device: BlockDevice) => Promise<void>) => Promise<void>][] = [
  ['memory', (work) => work(new MemoryDevice({ size: SIZE }))],
  [
    'file',
    (work) =>
      inFolder(async (folder) => work(await openFileDevice(join(folder, 'disk.img'), { createBytes: SIZE }))),
  ],
]

async function fill(device: BlockDevice, bytes: Buffer): Promise<void> {
  for (let at = 0; at < bytes.length; at += 65536) {
    const piece = bytes.subarray(at, at + 65536)
    if (!piece.equals(Buffer.alloc(piece.length))) await device.write(at, Buffer.from(piece))
  }
}

function allClean({ ends }: Served): void {
  assert.deepEqual(
    ends.filter((end) => end !== undefined),
    [],
  )
}

/** nbdsh with the export open as `h`; structured replies as asked; each line of Python must hold. */
async function nbdsh({ uri }: Served, structured: boolean, script: string): Promise<string> {
  const opening = [
    `h.set_request_structured_replies(${structured ? 'True' : 'False'})`,
    `h.add_meta_context(nbd.CONTEXT_BASE_ALLOCATION)`,
    `h.connect_uri("${uri}")`,
    `assert h.get_structured_replies_negotiated() == ${structured ? 'True' : 'False'}`,
  ].join('\n')
  return await succeed('nbdsh', ['-c', opening, '-c', script])
}

describe('nbdinfo', () => {
  test('nbdinfo --json', () =>
    serving(new MemoryDevice({ size: SIZE }), async (served) => {
      const { exports, ...connection } = JSON.parse(await succeed('nbdinfo', ['--json', served.uri]))
      assert.equal(connection.protocol, 'newstyle-fixed')
      assert.equal(connection.TLS, false)
      assert.equal(connection.structured, true)
      const [found] = exports
      const expected = {
        'export-name': 'disk',
        description: 'a disk of the tests',
        contexts: ['base:allocation'],
        is_rotational: false,
        is_read_only: false,
        can_cache: true,
        can_df: true,
        can_fast_zero: true,
        can_flush: true,
        can_fua: true,
        can_multi_conn: true,
        can_trim: true,
        can_zero: true,
        block_size_minimum: 1,
        block_size_preferred: 4096,
        block_size_maximum: 33554432,
        'export-size': SIZE,
      }
      for (const [key, value] of Object.entries(expected)) assert.deepEqual(found[key], value, key)
      allClean(served)
    }))

  test('nbdinfo --list', () =>
    serving(new MemoryDevice({ size: SIZE }), async (served) => {
      const text = await succeed('nbdinfo', ['--list', `nbd+unix:///?socket=${served.socket}`])
      assert.match(text, /protocol: newstyle-fixed without TLS, using structured packets\nexport="disk":/)
      assert.match(text, /export-size: 67108864 \(64M\)/)
      allClean(served)
    }))

  test('nbdinfo --size, --can, --is', () =>
    serving(new MemoryDevice({ size: SIZE, features: { readOnly: true } }), async (served) => {
      assert.equal(await succeed('nbdinfo', ['--size', served.uri]), `${SIZE}\n`)
      assert.equal((await run('nbdinfo', ['--can', 'write', served.uri])).code, 2)
      assert.equal((await run('nbdinfo', ['--is', 'read-only', served.uri])).code, 0)
      assert.equal((await run('nbdinfo', ['--can', 'flush', served.uri])).code, 0)
      allClean(served)
    }))

  test('nbdinfo --map', () =>
    serving(new MemoryDevice({ size: SIZE }), async (served) => {
      const device = new MemoryDevice({ size: SIZE })
      await fill(device, image())
      await serving(device, async (full) => {
        const map = await succeed('nbdinfo', ['--map', full.uri])
        assert.deepEqual(
          map
            .trim()
            .split('\n')
            .map((line) => line.trim().split(/\s+/)),
          [
            ['0', '1048576', '0', 'data'],
            ['1048576', '9437184', '3', 'hole,zero'],
            ['10485760', '5308416', '0', 'data'],
            ['15794176', '51249152', '3', 'hole,zero'],
            ['67043328', '65536', '0', 'data'],
          ],
        )
      })
      assert.match(
        await succeed('nbdinfo', ['--map', '--totals', served.uri]),
        /67108864 +100\.0% +3 hole,zero/,
      )
    }))

  test('nbdinfo of an export that does not exist', () =>
    serving(new MemoryDevice({ size: SIZE }), async (served) => {
      const { code, stderr } = await run('nbdinfo', [`nbd+unix:///nothing?socket=${served.socket}`])
      assert.equal(code, 1)
      assert.match(stderr, /No such file or directory for export: nothing/)
    }))

  test('nbds: a client that insists on TLS is refused', () =>
    serving(new MemoryDevice({ size: SIZE }), async (served) => {
      const { code, stderr } = await run('nbdinfo', [`nbds+unix:///disk?socket=${served.socket}`])
      assert.equal(code, 1)
      // libnbd 1.14 shows the server's text only with LIBNBD_DEBUG=1, and then this.
      assert.match(stderr, /connection is closed/)
      allClean(served)
    }))
})

for (const [kind, withDevice] of kinds) {
  describe(`on a ${kind} device`, () => {
    test('nbdcopy in, nbdcopy out, and the same again with 1 MiB requests', () =>
      withDevice((device) =>
        serving(device, async (served) => {
          for (const options of [[], ['--request-size=1048576', '--requests=16', '--flush']]) {
            const source = join(served.folder, 'source.img')
            const target = join(served.folder, 'target.img')
            const bytes = image()
            await writeFile(source, bytes)
            await succeed('nbdcopy', [...options, source, served.uri])
            assert.ok((await device.read(0, SIZE)).equals(bytes))
            await succeed('nbdcopy', [...options, served.uri, target])
            assert.ok((await readFile(target)).equals(bytes))
          }
          allClean(served)
        }),
      ))

    test('qemu-img convert in and out, compare, map, info', () =>
      withDevice((device) =>
        serving(device, async (served) => {
          const source = join(served.folder, 'source.img')
          const target = join(served.folder, 'target.img')
          const bytes = image()
          await writeFile(source, bytes)
          await succeed('qemu-img', ['convert', '-n', '-f', 'raw', '-O', 'raw', source, served.uri])
          assert.ok((await device.read(0, SIZE)).equals(bytes))
          await succeed('qemu-img', ['convert', '-f', 'raw', '-O', 'raw', served.uri, target])
          assert.ok((await readFile(target)).equals(bytes))
          assert.ok((await stat(target)).blocks * 512 < 16 * MIB, 'a sparse copy stays sparse')
          const compared = await succeed('qemu-img', [
            'compare',
            '-f',
            'raw',
            '-F',
            'raw',
            source,
            served.uri,
          ])
          assert.match(compared, /Images are identical\./)
          const info = JSON.parse(
            await succeed('qemu-img', ['info', '--output=json', '-f', 'raw', served.uri]),
          )
          assert.equal(info['virtual-size'], SIZE)
          const map = JSON.parse(await succeed('qemu-img', ['map', '--output=json', '-f', 'raw', served.uri]))
          const data = map.filter((each: { data: boolean }) => each.data)
          assert.ok(data.length >= 3)
          // The file device knows holes by grains of 64 KiB, so the middle piece may end up to one grain later.
          assert.equal(data[0].start, 0)
          assert.equal(data[1].start, 10 * MIB)
          allClean(served)
        }),
      ))

    test('qemu-io writes patterns, zeroes, flushes, and reads them back', () =>
      withDevice((device) =>
        serving(device, async (served) => {
          const commands = [
            'write -P 0x11 0 64k',
            'write -P 0x22 65535 2',
            'write -f -P 0x33 1M 1M',
            'aio_write -P 0x44 4M 2M',
            'aio_write -P 0x55 6M 1M',
            'aio_flush',
            'write -z 1056768 64k',
            'write -z -u 1310720 64k',
            'flush',
            'read -P 0x11 0 65535',
            'read -P 0x22 65535 2',
            'read -P 0x33 1M 8k',
            'read -P 0 1056768 64k',
            'read -P 0 1310720 64k',
            'read -P 0x44 4M 2M',
            'read -P 0x55 6M 1M',
          ]
          const args = commands.flatMap((each) => ['-c', each])
          const text = await succeed('qemu-io', ['-f', 'raw', ...args, served.uri])
          assert.doesNotMatch(text, /failed/i)
          assert.equal(text.match(/^wrote /gm)?.length, 7)
          const expected = Buffer.alloc(8 * MIB)
          expected
            .fill(0x11, 0, 65535)
            .fill(0x22, 65535, 65537)
            .fill(0x33, MIB, 2 * MIB)
          expected.fill(0x44, 4 * MIB, 6 * MIB).fill(0x55, 6 * MIB, 7 * MIB)
          expected.fill(0, 1056768, 1056768 + 65536).fill(0, 1310720, 1310720 + 65536)
          assert.ok((await device.read(0, expected.length)).equals(expected))
          allClean(served)
        }),
      ))
  })
}

describe('qemu-io, other requests', () => {
  test('discard, and an error of the device', () =>
    serving(
      new FaultyDevice(new MemoryDevice({ size: SIZE }), [{ operation: 'write', nth: 2, errno: 28 }]),
      async (served) => {
        const args = [
          'write -P 1 0 1M',
          'discard 0 1M',
          'read -P 0 0 1M',
          'write -P 2 0 64k',
          'write -P 3 0 64k',
        ]
        const { stdout } = await run('qemu-io', [
          '-f',
          'raw',
          ...args.flatMap((each) => ['-c', each]),
          served.uri,
        ])
        assert.match(stdout, /discard 1048576\/1048576 bytes at offset 0/)
        assert.match(stdout, /write failed: No space left on device/)
        assert.doesNotMatch(stdout, /read failed|discard failed|Pattern verification/i)
        assert.equal(stdout.match(/^wrote /gm)?.length, 2)
      },
    ))

  test('a minimum block of 4096 is obeyed by QEMU', () =>
    serving(
      new MemoryDevice({ size: SIZE, blockSizes: { minimum: 4096, preferred: 65536, maximum: MIB } }),
      async (served) => {
        const args = [
          'write -P 7 100 200',
          'write -P 8 1M 4M',
          'read -P 7 100 200',
          'read -P 8 1M 4M',
          'read -P 0 0 100',
        ]
        const text = await succeed('qemu-io', [
          '-f',
          'raw',
          ...args.flatMap((each) => ['-c', each]),
          served.uri,
        ])
        assert.doesNotMatch(text, /failed/i)
        allClean(served)
      },
    ))
})

describe('nbdsh', () => {
  for (const structured of [true, false]) {
    test(`all commands, ${structured ? 'structured' : 'simple'} replies`, () =>
      serving(new MemoryDevice({ size: SIZE }), async (served) => {
        const script = `
h.pwrite(b"hello" * 100, 4096)
assert h.pread(500, 4096) == b"hello" * 100
h.pwrite(b"durable", 0, nbd.CMD_FLAG_FUA)
h.zero(512, 4096)
assert h.pread(512, 4096) == bytearray(512)
h.zero(65536, 65536, nbd.CMD_FLAG_NO_HOLE)
h.zero(65536, 131072, nbd.CMD_FLAG_FAST_ZERO)
h.zero(65536, 131072, nbd.CMD_FLAG_FAST_ZERO | nbd.CMD_FLAG_NO_HOLE | nbd.CMD_FLAG_FUA)
h.trim(65536, 0)
h.trim(65536, 0, nbd.CMD_FLAG_FUA)
h.cache(65536, 0)
h.flush()
assert h.pread(7, 0) == bytearray(7)
cookies = [h.aio_pwrite(nbd.Buffer.from_bytearray(bytearray([i]) * 4096), i * 4096) for i in range(100)]
while h.aio_in_flight() > 0:
    h.poll(-1)
for cookie in cookies:
    assert h.aio_command_completed(cookie)
for i in range(100):
    assert h.pread(4096, i * 4096) == bytearray([i]) * 4096
print("done", h.get_size())
h.shutdown()
`
        assert.equal(await nbdsh(served, structured, script), `done ${SIZE}\n`)
        allClean(served)
      }))
  }

  test('structured reads with DF, block status with and without REQ_ONE', () =>
    serving(new MemoryDevice({ size: SIZE }), async (served) => {
      const script = `
h.pwrite(bytearray(b"x" * 65536), 65536)
chunks = []
def chunk(buf, offset, status, error):
    chunks.append((len(buf), offset, status))
h.pread_structured(65536, 65536, chunk, nbd.CMD_FLAG_DF)
assert chunks == [(65536, 65536, nbd.READ_DATA)], chunks
seen = []
def extents(context, offset, entries, error):
    seen.append((context, offset, list(entries)))
h.block_status(262144, 0, extents)
assert seen == [("base:allocation", 0, [65536, 3, 65536, 0, 131072, 3])], seen
seen.clear()
h.block_status(262144, 32768, extents, nbd.CMD_FLAG_REQ_ONE)
assert seen == [("base:allocation", 32768, [32768, 3])], seen
print("done")
`
      assert.equal(await nbdsh(served, true, script), 'done\n')
      allClean(served)
    }))

  test('requests that libnbd would not send are answered with the right error', () =>
    serving(new MemoryDevice({ size: SIZE, features: { fastZero: false } }), async (served) => {
      const script = `
import errno
h.set_strict_mode(0)
def fails(expected, call, *args):
    try:
        call(*args)
    except nbd.Error as error:
        assert error.errnum == expected, (args, error)
    else:
        raise AssertionError("no error: %r" % (args,))
size = h.get_size()
fails(errno.EINVAL, h.pread, 512, size)
fails(errno.EINVAL, h.pread, 0, 0)
fails(errno.ENOSPC, h.pwrite, bytearray(512), size)
fails(errno.ENOSPC, h.pwrite, bytearray(512), size - 511)
fails(errno.ENOSPC, h.zero, 512, size)
fails(errno.EINVAL, h.trim, 512, size)
fails(errno.EINVAL, h.cache, 512, size)
fails(errno.EINVAL, h.trim, 0, 0)
fails(errno.EINVAL, h.zero, 512, 0, nbd.CMD_FLAG_FAST_ZERO)
fails(errno.EINVAL, h.pwrite, bytearray(512), 0, nbd.CMD_FLAG_DF)
fails(errno.EINVAL, h.flush, nbd.CMD_FLAG_REQ_ONE)
fails(errno.EINVAL, h.pread, 33 * 1024 * 1024, 0)
h.pwrite(bytearray(512), size - 512)
print("done")
`
      assert.equal(await nbdsh(served, true, script), 'done\n')
      allClean(served)
    }))

  test('errors of the device reach the request they belong to', () =>
    serving(
      new FaultyDevice(new MemoryDevice({ size: SIZE }), [
        { operation: 'read', nth: 1, errno: 5 },
        { operation: 'write', nth: 2, errno: 28 },
        { operation: 'flush', nth: 1, errno: 5 },
        { operation: 'writeZeroes', nth: 1, errno: 95 },
      ]),
      async (served) => {
        const script = `
import errno
def fails(expected, call, *args):
    try:
        call(*args)
    except nbd.Error as error:
        assert error.errnum == expected, (args, error)
    else:
        raise AssertionError("no error: %r" % (args,))
fails(errno.EIO, h.pread, 512, 0)
h.pread(512, 0)
h.pwrite(bytearray(512), 0)
fails(errno.ENOSPC, h.pwrite, bytearray(512), 0)
h.pwrite(bytearray(512), 0)
fails(errno.EIO, h.flush)
h.flush()
fails(errno.ENOTSUP, h.zero, 512, 0, nbd.CMD_FLAG_FAST_ZERO)
h.zero(512, 0)
print("done")
`
        assert.equal(await nbdsh(served, true, script), 'done\n')
        allClean(served)
      },
    ))

  test('a write above the ceiling ends the connection', () =>
    serving(new MemoryDevice({ size: SIZE }), async (served) => {
      const script = `
h.set_strict_mode(0)
try:
    h.pwrite(bytearray(32 * 1024 * 1024 + 512), 0)
except nbd.Error as error:
    print("refused")
`
      assert.equal(await nbdsh(served, true, script), 'refused\n')
      assert.match(String(served.ends[0]), /payload of 33554944 bytes, at most 33554432 allowed/)
    }))

  test('options one at a time: list, info, contexts, abort', () =>
    serving(new MemoryDevice({ size: SIZE }), async (served) => {
      const script = `
h.set_opt_mode(True)
h.connect_unix("${served.socket}")
names = []
h.opt_list(lambda name, description: names.append(name))
assert names == ["disk"], names
h.set_export_name("nothing")
try:
    h.opt_info()
    raise AssertionError("no error")
except nbd.Error as error:
    pass
h.set_export_name("disk")
contexts = []
h.add_meta_context("base:")
h.opt_list_meta_context(lambda name: contexts.append(name))
assert contexts == ["base:allocation"], contexts
h.opt_info()
assert h.get_size() == ${SIZE}
assert h.get_block_size(nbd.SIZE_MAXIMUM) == 33554432
h.opt_abort()
print("done")
`
      assert.equal(await succeed('nbdsh', ['-c', script]), 'done\n')
      allClean(served)
    }))
})
