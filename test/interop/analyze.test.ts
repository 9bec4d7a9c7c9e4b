/**
 * swam analyze on qcow2 images, with the real qemu-img and qemu-nbd: a backing chain is what its flattening is, what cannot be
 * used is one line and its exit code, nothing that a header names is opened, and nothing is left behind.
 */
import assert from 'node:assert/strict'
import { type ChildProcess, execFileSync, spawn } from 'node:child_process'
import { randomBytes } from 'node:crypto'
import { once } from 'node:events'
import { mkdir, open, readdir, readFile, rm, writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import { test } from 'node:test'
import { setTimeout as sleep } from 'node:timers/promises'
import { gzipSync, zstdCompressSync } from 'node:zlib'
import { Qcow2Export } from '../../lib/catalog/qcow2-export.ts'
import { MIB } from '../../lib/core/units.ts'
import { type AnalyzeReport, analyze } from '../../server/analyze/analyze.ts'
import { chainRules } from '../../server/analyze/images.ts'
import { image, inFolder, QUICK, swam } from '../unit/analyze/rig.ts'
import { noise } from '../unit/engine/rig.ts'
import { createImage, succeed } from './nbd-peers.ts'

const SIZE = 8 * MIB

/** top on middle on base: each has bytes of its own, and the top zeroes some of the base's. */
async function chain(folder: string): Promise<{ top: string; middle: string; base: string }> {
  const [top, middle, base] = ['top.qcow2', 'middle, 2.qcow2', 'base "1".raw'].map((name) =>
    join(folder, name),
  )
  await image(base!, SIZE, [[MIB, noise(3 * MIB, 11)]])
  await succeed('qemu-img', ['create', '-q', '-f', 'qcow2', '-b', base!, '-F', 'raw', middle!])
  await succeed('qemu-img', ['create', '-q', '-f', 'qcow2', '-b', middle!, '-F', 'qcow2', top!])
  await succeed('qemu-io', [
    '-f',
    'qcow2',
    '-c',
    'write -q -P 5 2M 64k',
    '-c',
    'write -q -P 6 6M 128k',
    middle!,
  ])
  await succeed('qemu-io', ['-f', 'qcow2', '-c', 'write -q -z 3M 256k', '-c', 'write -q -P 7 7M 64k', top!])
  return { top: top!, middle: middle!, base: base! }
}

test('a backing chain is what its flattening is', async () => {
  await inFolder(async (folder) => {
    const { top, middle, base } = await chain(folder)
    const flat = join(folder, 'flat.raw')
    await succeed('qemu-img', ['convert', '-f', 'qcow2', '-O', 'raw', top, flat])
    const backing = [`qcow2:${middle}`, base]
    const onLost = (error: Error): void => assert.fail(error.message)
    const names = [
      { path: middle, format: 'qcow2', explicit: true },
      { path: base, format: 'raw', explicit: false },
    ] as const
    const source = await Qcow2Export.open({ path: top, format: 'qcow2', explicit: true }, chainRules(names), {
      onLost,
    })
    try {
      assert.equal(source.size, SIZE)
      assert.ok((await source.read(0, SIZE)).equals(await readFile(flat)))
      assert.ok(
        (await source.read(MIB + 1, 4097)).equals((await readFile(flat)).subarray(MIB + 1, MIB + 4098)),
      )
      const mapped = (await source.extents()).reduce((sum, { offset, end }) => sum + end - offset, 0)
      assert.ok(mapped < SIZE, 'holes are told of')
    } finally {
      await source.close()
    }
    const ofChain = await analyze({ ...QUICK, target: top, format: 'qcow2', have: [`raw:${base}`], backing })
    const ofFlat = await analyze({ ...QUICK, target: flat, have: [base] })
    // How it is told of depends on where an image's map says that there is something.
    assert.deepEqual({ ...ofChain.bySource, digest: 0 }, { ...ofFlat.bySource, digest: 0 })
    assert.equal(ofChain.dataBytes, ofFlat.dataBytes)
    assert.ok(ofChain.bySource.chunk > 2 * MIB)

    // And as what the far side has: all of it is there, in another format.
    const had = await analyze({ ...QUICK, target: flat, have: [`qcow2:${top}`], backing })
    assert.equal(had.bySource.literal, 0)
    const inPlace = await analyze({ ...QUICK, target: flat, inPlace: `qcow2:${top}`, backing })
    assert.equal(inPlace.bySource.inPlace, inPlace.dataBytes)
  })
})

interface Row {
  readonly name: string
  /** Makes what is needed in the folder; gives the arguments. */
  readonly args: (folder: string) => Promise<readonly string[]>
  readonly code: number
  readonly line: RegExp
}

const qcow2 = async (path: string, ...options: readonly string[]): Promise<string> => {
  await createImage(['-f', 'qcow2', ...options, path, String(SIZE)])
  return path
}

/** Not by `succeed`: it is over before its input is, which is an error of the pipe. */
const fifo = (path: string): void => void execFileSync('mkfifo', [path])

/** Overwrites bytes of a file. */
async function poke(path: string, offset: number, bytes: readonly number[]): Promise<string> {
  await using file = await open(path, 'r+')
  await file.write(Buffer.from(bytes), 0, bytes.length, offset)
  return path
}

/** The first entry of its L1 table is a table at an odd offset. */
async function astray(folder: string): Promise<string> {
  const path = await qcow2(join(folder, 'q'))
  await succeed('qemu-io', ['-f', 'qcow2', '-c', 'write -q -P 1 0 1M', path])
  const l1 = Number((await readFile(path)).readBigUInt64BE(40))
  return await poke(path, l1, [0x80, 0, 0, 0, 0, 1, 2, 0])
}

/** A file that ends before its data do. */
async function cutShort(folder: string): Promise<string> {
  const path = await qcow2(join(folder, 'q'))
  await succeed('qemu-io', ['-f', 'qcow2', '-c', 'write -q -P 1 0 4M', path])
  await writeFile(path, (await readFile(path)).subarray(0, 2 * MIB))
  return path
}

const rows: readonly Row[] = [
  {
    name: 'no such image',
    args: async (folder) => [join(folder, 'none')],
    code: 5,
    line: /none: no such image$/,
  },
  {
    name: 'no such image at the far side',
    args: async (folder) => [await image(join(folder, 'a'), SIZE, []), '--have', join(folder, 'none')],
    code: 5,
    line: /none: no such image$/,
  },
  {
    name: 'no such image in place',
    args: async (folder) => [await image(join(folder, 'a'), SIZE, []), '--in-place', join(folder, 'none')],
    code: 5,
    line: /none: no such image$/,
  },
  {
    name: 'no such qcow2',
    args: async (folder) => [`qcow2:${join(folder, 'none')}`],
    code: 5,
    line: /none: no such image$/,
  },
  {
    name: 'an empty image',
    args: async (folder) => [await image(join(folder, 'a'), 0, [])],
    code: 1,
    line: /a: the image is empty$/,
  },
  {
    name: 'an empty qcow2',
    args: async (folder) => [`qcow2:${await image(join(folder, 'a'), 0, [])}`],
    code: 1,
    line: /a: the image is empty$/,
  },
  {
    name: 'no multiple of a sector',
    args: async (folder) => [await image(join(folder, 'a'), SIZE + 511, [])],
    code: 1,
    line: /a: 8389119 bytes: expected a multiple of 512, as every disk of a guest has$/,
  },
  {
    name: 'a directory',
    args: async (folder) => [folder],
    code: 1,
    line: /: expected an image file or a block device, found a directory$/,
  },
  {
    name: 'a FIFO',
    args: async (folder) => {
      fifo(join(folder, 'fifo'))
      return [join(folder, 'fifo')]
    },
    code: 1,
    line: /fifo: expected an image file or a block device, found a FIFO$/,
  },
  {
    name: 'a character device',
    args: async () => ['/dev/zero'],
    code: 1,
    line: /\/dev\/zero: expected an image file or a block device, found a character device$/,
  },
  {
    name: 'another size in place',
    args: async (folder) => [
      await image(join(folder, 'a'), SIZE, []),
      '--in-place',
      await image(join(folder, 'b'), SIZE + 512, []),
    ],
    code: 1,
    line: /b: in place: expected an image of 8388608 bytes, as .*a has, found 8389120$/,
  },
  {
    name: 'a qcow2 that nobody called so',
    args: async (folder) => [await qcow2(join(folder, 'q'))],
    code: 2,
    line: /\/q begins as a qcow2: say qcow2:.*\/q or raw:.*\/q$/,
  },
  {
    name: 'a raw image that was called a qcow2',
    args: async (folder) => [await image(join(folder, 'a'), SIZE, []), '--format', 'qcow2'],
    code: 1,
    line: /a: not readable as a qcow2: Image is not in qcow2 format$/,
  },
  {
    name: 'an encrypted qcow2',
    args: async (folder) => {
      const secret = ['--object', 'secret,id=s,data=abc']
      const luks = ['-o', 'encrypt.format=luks,encrypt.key-secret=s,encrypt.iter-time=10']
      return [`qcow2:${await qcow2(join(folder, 'q'), ...secret, ...luks)}`]
    },
    code: 1,
    line: /q: it is encrypted: what is in it cannot be told without its key$/,
  },
  {
    name: 'an encrypted raw image (LUKS)',
    args: async (folder) => {
      const path = join(folder, 'a.luks')
      const secret = ['--object', 'secret,id=s,data=abc', '-o', 'key-secret=s,iter-time=10']
      await createImage(['-f', 'luks', ...secret, path, '8M'])
      return [path]
    },
    code: 2,
    line: /a\.luks is encrypted \(LUKS\): what is in it cannot be told without its key; if its guest encrypts, say raw:.*a\.luks$/,
  },
  ...(['vmdk', 'vhdx', 'vpc', 'vdi', 'qed'] as const).map((format) => ({
    name: `a ${format}`,
    args: async (folder: string) => {
      const path = join(folder, `a.${format}`)
      await succeed('qemu-img', ['create', '-q', '-f', format, path, '8M'])
      return [path]
    },
    code: 2,
    line: new RegExp(
      `/a\\.${format} begins as a (VMDK|VHDX|VHD|VDI|QED), which is not read: convert it \\(qemu-img convert -O raw\\), or say raw:.*\\.${format}$`,
    ),
  })),
  ...(['gzip', 'xz', 'zstd'] as const).map((name) => ({
    name: `an image that ${name} packed`,
    args: async (folder: string) => {
      const path = join(folder, 'packed')
      const bytes = Buffer.alloc(SIZE)
      if (name === 'xz') await writeFile(path, execFileSync('xz', ['-c'], { input: bytes }))
      else await writeFile(path, name === 'gzip' ? gzipSync(bytes) : zstdCompressSync(bytes))
      return [path]
    },
    code: 2,
    line: new RegExp(`packed begins as ${name}, which is not read: unpack it, or say raw:.*packed$`),
  })),
  {
    name: 'a qcow2 that is marked as corrupt',
    args: async (folder) => [`qcow2:${await poke(await qcow2(join(folder, 'q')), 79, [2])}`],
    code: 1,
    line: /q: it is marked as corrupt: qemu-img check says more$/,
  },
  {
    name: 'a qcow2 with a broken header',
    args: async (folder) => [
      `qcow2:${await poke(await qcow2(join(folder, 'q')), 36, [0xff, 0xff, 0xff, 0xff])}`,
    ],
    code: 1,
    line: /q: not readable as a qcow2: .+$/,
  },
  {
    name: 'a qcow2 whose table leads nowhere',
    args: async (folder) => [`qcow2:${await astray(folder)}`],
    code: 1,
    line: /q: it is corrupt: \d+ entries of its tables do not fit its file: qemu-img check says more$/,
  },
  {
    name: 'a qcow2 whose table leads nowhere, at the far side',
    args: async (folder) => [
      await image(join(folder, 'a'), SIZE, []),
      '--have',
      `qcow2:${await astray(folder)}`,
    ],
    code: 1,
    line: /q: (map|read) \d+ bytes at \d+: .+$/,
  },
  {
    name: 'a cut qcow2',
    args: async (folder) => {
      const path = await qcow2(join(folder, 'q'))
      await writeFile(path, (await readFile(path)).subarray(0, 50))
      return [`qcow2:${path}`]
    },
    code: 1,
    line: /q: not readable as a qcow2: .+$/,
  },
  {
    name: 'a qcow2 that is cut behind its tables: its end would be zeroes',
    args: async (folder) => [`qcow2:${await cutShort(folder)}`],
    code: 1,
    line: /q: it is corrupt: 3\d entries of its tables do not fit its file: qemu-img check says more$/,
  },
  {
    name: 'a qcow2 in place that is cut behind its tables',
    args: async (folder) => [
      await image(join(folder, 'a'), SIZE, []),
      '--in-place',
      `qcow2:${await cutShort(folder)}`,
    ],
    code: 1,
    line: /q: it is corrupt: 3\d entries/,
  },
  {
    name: 'a backing file that was not named',
    args: async (folder) => [`qcow2:${(await chain(folder)).top}`],
    code: 1,
    line: /top\.qcow2: it stands on .*\/middle, 2\.qcow2: if that may be read, say --backing qcow2:.*middle, 2\.qcow2$/,
  },
  {
    name: 'a backing file below a backing file that was not named',
    args: async (folder) => {
      const { top, middle } = await chain(folder)
      return [`qcow2:${top}`, '--backing', `qcow2:${middle}`]
    },
    code: 1,
    line: /middle, 2\.qcow2: it stands on .*base "1"\.raw: if that may be read, say --backing raw:.*$/,
  },
  {
    name: 'a backing file in another format',
    args: async (folder) => {
      const { top, middle, base } = await chain(folder)
      return [`qcow2:${top}`, '--backing', `raw:${middle}`, base]
    },
    code: 1,
    line: /top\.qcow2: it has its backing file as qcow2, not as raw: say --backing qcow2:.*middle, 2\.qcow2$/,
  },
  {
    name: 'a backing file that is a FIFO: it is not opened',
    args: async (folder) => {
      fifo(join(folder, 'fifo'))
      return [`qcow2:${await qcow2(join(folder, 'q'), '-u', '-b', join(folder, 'fifo'), '-F', 'raw')}`]
    },
    code: 1,
    line: /q: it stands on .*\/fifo: if that may be read, say --backing raw:.*\/fifo$/,
  },
  {
    name: 'a circle of backing files',
    args: async (folder) => {
      const path = await qcow2(join(folder, 'q'))
      await succeed('qemu-img', ['rebase', '-u', '-f', 'qcow2', '-b', path, '-F', 'qcow2', path])
      return [`qcow2:${path}`, '--backing', `qcow2:${path}`]
    },
    code: 1,
    line: /q: expected at most 64 files in its backing chain$/,
  },
  {
    name: 'data in another file, which is gone: it is not opened',
    args: async (folder) => {
      const data = join(folder, 'data')
      const path = await qcow2(join(folder, 'q'), '-o', `data_file=${data}`)
      await rm(data)
      fifo(data)
      return [`qcow2:${path}`]
    },
    code: 1,
    line: /q: its data lie in another file \(.*\/data\): that is not supported$/,
  },
  {
    name: 'a format that is none',
    args: async (folder) => [await image(join(folder, 'a'), SIZE, []), '--format', 'vmdk'],
    code: 2,
    line: /option '--format <format>' argument 'vmdk' is invalid\. Allowed choices are raw, qcow2\.: see swam --help$/,
  },
  {
    name: 'no image',
    args: async () => [],
    code: 2,
    line: /missing required argument 'file': see swam --help$/,
  },
  { name: 'an empty path', args: async () => ['raw:'], code: 2, line: /expected the path of an image/ },
]

for (const { name, args, code, line } of rows) {
  test(`refused in one line: ${name}`, async () => {
    await inFolder(async (folder) => {
      const found = await swam('analyze', ...(await args(folder)))
      assert.equal(found.out, '')
      assert.match(found.err, /^swam: [^\n]+\n$/)
      assert.match(found.err.trimEnd(), line)
      assert.equal(found.code, code, found.err)
    })
  })
}

// ---- what is left behind ------------------------------------------------------------------------------------------

/** The real program on a qcow2 of 64 MiB, while its qemu-nbd runs; gives both processes. */
async function running(
  folder: string,
): Promise<{ swam: ChildProcess; stderr: () => string; exporter: number }> {
  const raw = await image(join(folder, 'a.raw'), 64 * MIB, [[0, randomBytes(48 * MIB)]])
  const path = join(folder, 'a.qcow2')
  await succeed('qemu-img', ['convert', '-f', 'raw', '-O', 'qcow2', raw, path])
  await mkdir(join(folder, 'tmp'))
  const child = spawn('bin/swam', ['analyze', `qcow2:${path}`], {
    stdio: ['ignore', 'ignore', 'pipe'],
    env: { ...process.env, TMPDIR: join(folder, 'tmp') },
  })
  let stderr = ''
  child.stderr.on('data', (piece: Buffer) => (stderr += piece.toString()))
  for (let i = 0; i < 1000; i++) {
    const exporter = await exporterOf(child.pid!)
    if (exporter !== undefined) return { swam: child, stderr: () => stderr, exporter }
    await sleep(10)
  }
  throw new Error(`no qemu-nbd was started: ${stderr}`)
}

async function exporterOf(parent: number): Promise<number | undefined> {
  for (const pid of (await readdir('/proc')).map(Number).filter(Number.isInteger)) {
    const stat = await readFile(`/proc/${pid}/stat`, 'latin1').catch(() => '')
    const [, comm, ppid] = /^\d+ \((.*)\) \S (\d+)/s.exec(stat) ?? []
    if (comm === 'qemu-nbd' && Number(ppid) === parent) return pid
  }
  return undefined
}

const runs = async (pid: number): Promise<boolean> => {
  const stat = await readFile(`/proc/${pid}/stat`, 'latin1').catch(() => '')
  return stat !== '' && !/\) Z /.test(stat)
}

test('Ctrl-C ends it: one line, no process and no file stays', async () => {
  await inFolder(async (folder) => {
    const { swam: child, stderr, exporter } = await running(folder)
    child.kill('SIGINT')
    const [code] = (await once(child, 'close')) as [number | null]
    assert.equal(code, 1)
    assert.equal(stderr(), 'swam: analyze: interrupted by SIGINT\n')
    assert.equal(await runs(exporter), false)
    assert.deepEqual(await readdir(join(folder, 'tmp')), [])
  })
})

test('killed outright, it takes its qemu-nbd with it', async () => {
  await inFolder(async (folder) => {
    const { swam: child, exporter } = await running(folder)
    child.kill('SIGKILL')
    await once(child, 'close')
    for (let i = 0; i < 500 && (await runs(exporter)); i++) await sleep(10)
    assert.equal(await runs(exporter), false)
  })
})

test('an export that ends under it is told as that', async () => {
  await inFolder(async (folder) => {
    const { swam: child, stderr, exporter } = await running(folder)
    process.kill(exporter, 'SIGKILL')
    const [code] = (await once(child, 'close')) as [number | null]
    assert.equal(code, 1)
    assert.match(stderr(), /^swam: .*a\.qcow2: [^\n]*qemu-nbd[^\n]*\n$/)
  })
})

test('qemu-nbd has no network where we may take it away', async () => {
  await inFolder(async (folder) => {
    const { swam: child, exporter } = await running(folder)
    try {
      const dev = await readFile(`/proc/${exporter}/net/dev`, 'utf8')
      if (process.getuid?.() === 0)
        assert.deepEqual(
          dev.match(/^ *\S+(?=:)/gm)?.map((name) => name.trim()),
          ['lo'],
        )
    } finally {
      child.kill('SIGTERM')
      await once(child, 'close')
    }
  })
})

test('bytes of a qcow2 as such are bytes, at the far side of any length', async () => {
  await inFolder(async (folder) => {
    const path = await qcow2(join(folder, 'q'))
    const target = await image(join(folder, 'a'), SIZE, [])
    const found = await swam('analyze', target, '--have', `raw:${path}`, '--json')
    assert.equal(found.code, 0, found.err)
    assert.equal((JSON.parse(found.out) as AnalyzeReport).haveImages, 1)
  })
})
