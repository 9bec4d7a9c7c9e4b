/**
 * What root keeps of a failed migration and takes away again, on real files: through `swam hook` as libvirt calls it, with no daemon
 * or a real hook.sock, and through `swam salvage`. And what it must never touch, follow or believe.
 */
import assert from 'node:assert/strict'
import { execFileSync } from 'node:child_process'
import {
  chmodSync,
  chownSync,
  existsSync,
  linkSync,
  lstatSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  renameSync,
  rmSync,
  statSync,
  symlinkSync,
  truncateSync,
  utimesSync,
  writeFileSync,
} from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { Readable } from 'node:stream'
import { type TestContext, test } from 'node:test'
import { loadConfig } from '../../../config/load.ts'
import type { HookRequest } from '../../../hooks/decision.ts'
import { listImages } from '../../../lib/catalog/image-files.ts'
import { MIB } from '../../../lib/core/units.ts'
import { UNWRITTEN } from '../../../lib/host/unwritten.ts'
import { EXIT } from '../../../server/cli/exit-codes.ts'
import { hookCommand } from '../../../server/cli/hook.ts'
import { runSwam } from '../../../server/cli/program.ts'
import { keepImage, sweepSalvage } from '../../../server/cli/salvage-files.ts'
import { serveControl } from '../../../server/control.ts'
import { writeMark } from '../../../server/incoming-mark.ts'
import { randomBytes } from '../chunk/samples.ts'

const UUID = '33333333-3333-4333-8333-333333333333'
const OTHER = '44444444-4444-4444-8444-444444444444'
const NOBODY = 65_534

interface Host {
  readonly folder: string
  readonly images: string
  readonly salvage: string
  readonly path: (name: string) => string
  /** An image that holds something. */
  readonly image: (name: string, bytes?: number) => string
  readonly kept: () => string[]
  readonly mark: (...missing: string[]) => Promise<void>
  /** libvirt's call, with these disks: target, format, path. */
  readonly hook: (
    event: string,
    disks: readonly (readonly [string, string, string])[],
    more?: string,
  ) => Promise<number>
  readonly swam: (...words: string[]) => Promise<{ code: number; out: string; err: string }>
  readonly config: (more: string) => void
}

function host(context: TestContext): Host {
  const folder = mkdtempSync(join(tmpdir(), 'swam-salvage-'))
  context.after(() => rmSync(folder, { recursive: true, force: true }))
  const images = join(folder, 'images')
  const salvage = join(images, '.swam-salvage')
  mkdirSync(join(images, 'sub'), { recursive: true })
  mkdirSync(join(folder, 'incoming'))
  const config = (more: string): void =>
    writeFileSync(
      join(folder, 'swam.toml'),
      `site = "a"\nrunDir = "${folder}"\nimages = ["${images}"]\n${more}`,
    )
  config('')
  const output = { text: '', err: '' }
  const sink = {
    out: (text: string) => {
      output.text += text
    },
    err: (text: string) => {
      output.err += text
    },
  }
  return {
    folder,
    images,
    salvage,
    config,
    path: (name) => join(images, name),
    image: (name, bytes = 2 * MIB) => {
      writeFileSync(join(images, name), randomBytes(bytes, 1), { mode: 0o600 })
      return join(images, name)
    },
    kept: () => (existsSync(salvage) ? readdirSync(salvage).sort() : []),
    mark: (...missing) => writeMark(join(folder, 'incoming', 'vm'), 'id', missing),
    hook: async (event, disks, more = '') => {
      const elements = disks.map(
        ([target, format, path]) =>
          `<disk type='file' device='disk'><driver type='${format}'/><source file='${path}'/><target dev='${target}'/></disk>`,
      )
      const xml = `<domain><name>vm</name><uuid>${UUID}</uuid><devices>${elements.join('')}${more}</devices></domain>`
      return await hookCommand(
        { argv: ['vm', ...event.split(' ')], stdin: Readable.from([Buffer.from(xml)]) },
        { config: join(folder, 'swam.toml') },
        sink,
      )
    },
    swam: async (...words) => {
      output.text = ''
      output.err = ''
      const argv = ['--config', join(folder, 'swam.toml'), ...words]
      const code = await runSwam(argv, Readable.from([]), sink)
      return { code, out: output.text, err: output.err }
    },
  }
}

const NAME = `${UUID}-vda.raw`

for (const event of ['stopped end', 'release end']) {
  test(`${event}: what libvirt made is linked, without a daemon, and is an image when libvirt has taken it away`, async (context) => {
    const at = host(context)
    const path = at.image('a.raw')
    const before = statSync(path)
    await at.mark(path)
    assert.equal(await at.hook(event, [['vda', 'raw', path]]), 0)
    assert.deepEqual(at.kept(), [NAME])
    const folder = lstatSync(at.salvage)
    assert.deepEqual([folder.uid, folder.mode & 0o7777], [0, 0o700])
    const linked = lstatSync(join(at.salvage, NAME))
    assert.deepEqual(
      [linked.ino, linked.uid, linked.mode, linked.nlink],
      [before.ino, before.uid, before.mode, 2],
    )
    assert.deepEqual(
      (await listImages([at.images])).map((each) => each.path),
      [path],
      'it counts once',
    )
    rmSync(path)
    assert.deepEqual(
      (await listImages([at.images])).map((each) => each.path),
      [join(at.salvage, NAME)],
    )
    assert.ok(readFileSync(join(at.salvage, NAME)).equals(randomBytes(2 * MIB, 1)))
  })
}

test('the script that libvirt runs, with the program itself: linked, quiet, and not for a guest that is not marked', async (context) => {
  const at = host(context)
  const path = at.image('a.raw')
  const root = new URL('../../../', import.meta.url).pathname
  const script = readFileSync(join(root, 'hooks/50-swam'), 'utf8')
    .replace('/usr/bin/swam', join(root, 'bin/swam'))
    .replace('/etc/swam/swam.toml', join(at.folder, 'swam.toml'))
    .replace('/run/swam/incoming', join(at.folder, 'incoming'))
  writeFileSync(join(at.folder, '50-swam'), script)
  const disk = `<disk type='file'><driver type='raw'/><source file='${path}'/><target dev='vda'/></disk>`
  const xml = `<domain><name>vm</name><uuid>${UUID}</uuid><devices>${disk}</devices></domain>`
  writeFileSync(join(at.folder, 'vm.xml'), xml)
  const call = (): string =>
    execFileSync('sh', ['-c', 'dash ./50-swam vm stopped end - <vm.xml 2>&1'], {
      cwd: at.folder,
      encoding: 'utf8',
    })
  assert.equal(call(), '')
  assert.deepEqual(at.kept(), [])
  await at.mark(path)
  assert.equal(call(), '')
  assert.deepEqual(at.kept(), [NAME])
})

test('both events of one end, one after the other, make one link', async (context) => {
  const at = host(context)
  const path = at.image('a.raw')
  await at.mark(path)
  await at.hook('stopped end', [['vda', 'raw', path]])
  await at.hook('release end', [['vda', 'raw', path]])
  assert.deepEqual(at.kept(), [NAME])
  assert.equal(statSync(path).nlink, 2)
})

test('the daemon is told what was kept; what it does with it changes nothing', async (context) => {
  const at = host(context)
  const path = at.image('a.raw')
  const requests: HookRequest[] = []
  const server = await serveControl({
    path: join(at.folder, 'hook.sock'),
    mode: 0o600,
    requestBytesMax: 3_000_000,
    handlers: {
      hook: async (params) => {
        requests.push(params as HookRequest)
        return { action: 'none' }
      },
    },
  })
  context.after(() => server.close())
  await at.hook('stopped end', [['vda', 'raw', path]])
  await at.mark(path)
  await at.hook('stopped end', [['vda', 'raw', path]])
  assert.deepEqual(
    requests.map(({ kept }) => kept),
    [undefined, [path]],
  )
})

test('a qcow2 is one by its name, as libvirt says; other formats are taken as they lie', async (context) => {
  const at = host(context)
  const [a, b] = [at.image('a'), at.image('b')]
  await at.mark(a, b)
  await at.hook('stopped end', [
    ['vda', 'qcow2', a],
    ['vdb', 'vmdk', b],
  ])
  assert.deepEqual(at.kept(), [`${UUID}-vda.qcow2`, `${UUID}-vdb.raw`])
  rmSync(a)
  rmSync(b)
  assert.deepEqual(
    (await listImages([at.images])).map(({ format }) => format),
    ['qcow2', undefined],
  )
})

test('an image below a directory of the config is linked at its top', async (context) => {
  const at = host(context)
  const path = at.image('sub/a.raw')
  await at.mark(path)
  await at.hook('stopped end', [['vda', 'raw', path]])
  assert.deepEqual(at.kept(), [NAME])
})

test('of two attempts the image that holds more stays; the other one goes with the next sweep', async (context) => {
  const at = host(context)
  const disks = [['vda', 'raw', at.path('a.raw')]] as const
  const attempt = async (mib: number): Promise<void> => {
    await at.mark(at.image('a.raw', mib * MIB))
    await at.hook('stopped end', disks)
    rmSync(at.path('a.raw'))
  }
  await attempt(4)
  await attempt(2)
  assert.deepEqual(at.kept(), [NAME])
  assert.equal(statSync(join(at.salvage, NAME)).size, 4 * MIB)
  await attempt(6)
  assert.deepEqual(at.kept(), [`.old-${NAME}`, NAME])
  assert.equal(statSync(join(at.salvage, NAME)).size, 6 * MIB)
  assert.equal((await listImages([at.images])).length, 1, 'what was replaced is no image')
  // What a hook that was killed leaves.
  linkSync(join(at.salvage, NAME), join(at.salvage, `.new-${NAME}`))
  await at.swam('salvage', 'sweep')
  assert.deepEqual(at.kept(), [NAME])
})

// ---- what is not kept ----------------------------------------------------------------------------------------

for (const { name, prepare } of [
  {
    name: 'what was there before, or our hook made: the mark does not have it',
    prepare: (at: Host) => at.mark(),
  },
  { name: 'a guest without a mark', prepare: async () => undefined },
  {
    name: 'an image that the hook made and nobody wrote',
    prepare: async (at: Host) => {
      truncateSync(at.path('a.raw'), 0)
      truncateSync(at.path('a.raw'), 8 * MIB)
      utimesSync(at.path('a.raw'), UNWRITTEN, UNWRITTEN)
      await at.mark(at.path('a.raw'))
    },
  },
  {
    name: 'one that holds nothing',
    prepare: async (at: Host) => {
      truncateSync(at.path('a.raw'), 0)
      truncateSync(at.path('a.raw'), 8 * MIB)
      await at.mark(at.path('a.raw'))
    },
  },
  {
    name: 'one that is gone already',
    prepare: async (at: Host) => {
      rmSync(at.path('a.raw'))
      await at.mark(at.path('a.raw'))
    },
  },
  {
    name: 'salvageGiB = 0',
    prepare: async (at: Host) => {
      at.config('[limits]\nsalvageGiB = 0\n')
      await at.mark(at.path('a.raw'))
    },
  },
]) {
  test(`not kept: ${name}`, async (context) => {
    const at = host(context)
    const path = at.image('a.raw')
    await prepare(at)
    assert.equal(await at.hook('stopped end', [['vda', 'raw', path]]), 0)
    assert.deepEqual(at.kept(), [])
  })
}

test('the mark is a stranger’s word: only what stands in the XML as a written file disk is linked', async (context) => {
  const at = host(context)
  const secret = join(at.folder, 'secret')
  writeFileSync(secret, randomBytes(2 * MIB, 1))
  const paths = ['a', 'read-only', 'shared', 'elsewhere'].map((name) => at.image(name))
  mkdirSync(join(at.folder, 'images-not'))
  const outside = join(at.folder, 'images-not', 'b')
  writeFileSync(outside, randomBytes(2 * MIB, 1))
  symlinkSync(secret, at.path('link'))
  symlinkSync(at.folder, at.path('folder'))
  await at.mark(...paths, secret, outside, at.path('link'), at.path('folder/secret'), at.path('sub/..'))
  const disk = (target: string, path: string, more: string): string =>
    `<disk type='file' device='disk'><driver type='raw'/><source file='${path}'/><target dev='${target}'/>${more}</disk>`
  await at.hook(
    'stopped end',
    [
      ['vdd', 'raw', secret],
      ['vde', 'raw', outside],
      ['vdf', 'raw', at.path('link')],
      ['vdg', 'raw', at.path('folder/secret')],
      ['vdh', 'raw', at.path('sub/..')],
      ['../../x', 'raw', paths[0]!],
    ],
    disk('vdb', paths[1]!, '<readonly/>') + disk('vdc', paths[2]!, '<shareable/>'),
  )
  assert.deepEqual(at.kept(), [])
  assert.equal(statSync(secret).nlink, 1)
})

test('of two disks only the one that libvirt made is linked', async (context) => {
  const at = host(context)
  const [a, b] = [at.image('a.raw'), at.image('b.raw')]
  await at.mark(b)
  await at.hook('stopped end', [
    ['vda', 'raw', a],
    ['vdb', 'raw', b],
  ])
  assert.deepEqual(at.kept(), [`${UUID}-vdb.raw`])
})

for (const { name, write } of [
  { name: 'no JSON', write: (mark: string) => writeFileSync(mark, '{"missing":[') },
  { name: 'null', write: (mark: string) => writeFileSync(mark, 'null') },
  { name: 'of swamd 0.1', write: (mark: string) => writeFileSync(mark, 'some-id\n') },
  { name: 'no texts', write: (mark: string) => writeFileSync(mark, '{"missing":[1,{},null]}') },
  {
    name: 'too many',
    write: (mark: string) => writeFileSync(mark, JSON.stringify({ missing: new Array(300).fill('x') })),
  },
  {
    name: 'too long',
    write: (mark: string) => {
      writeFileSync(mark, '')
      truncateSync(mark, 3 * MIB)
    },
  },
  { name: 'a FIFO', write: (mark: string) => void execFileSync('mkfifo', [mark]) },
  {
    name: 'a link',
    write: (mark: string) => {
      writeFileSync(`${mark}-real`, '')
      symlinkSync(`${mark}-real`, mark)
    },
  },
]) {
  test(`a mark that is none, ${name}: nothing is kept, and nobody waits`, async (context) => {
    const at = host(context)
    const path = at.image('a.raw')
    write(join(at.folder, 'incoming', 'vm'))
    if (name === 'a link') await writeMark(join(at.folder, 'incoming', 'vm-real'), 'id', [path])
    assert.equal(await at.hook('stopped end', [['vda', 'raw', path]]), 0)
    assert.deepEqual(at.kept(), [])
  })
}

// ---- the folder ----------------------------------------------------------------------------------------------

for (const { name, make } of [
  {
    name: 'made by another user',
    make: (at: Host) => {
      mkdirSync(at.salvage, { mode: 0o700 })
      chownSync(at.salvage, NOBODY, NOBODY)
    },
  },
  {
    name: 'open to others',
    make: (at: Host) => {
      mkdirSync(at.salvage)
      chmodSync(at.salvage, 0o711)
    },
  },
  {
    name: 'a link to a folder of root’s',
    make: (at: Host) => {
      mkdirSync(join(at.folder, 'roots'), { mode: 0o700 })
      symlinkSync(join(at.folder, 'roots'), at.salvage)
    },
  },
  { name: 'a file', make: (at: Host) => writeFileSync(at.salvage, '') },
]) {
  test(`a folder of that name that is ${name}: nothing is linked into it, taken from it, or believed`, async (context) => {
    const at = host(context)
    const path = at.image('a.raw')
    make(at)
    await at.mark(path)
    assert.equal(await at.hook('stopped end', [['vda', 'raw', path]]), 0)
    assert.equal(statSync(path).nlink, 1)
    if (statSync(at.salvage).isDirectory()) {
      // What lies there by whatever hand is neither an image nor ours to remove.
      const trap = join(at.salvage, `${OTHER}-vda.raw`)
      writeFileSync(trap, randomBytes(2 * MIB, 1))
      assert.deepEqual(
        (await listImages([at.images])).map((each) => each.path),
        [path],
      )
      const { code, err } = await at.swam('salvage', 'remove')
      assert.equal(code, EXIT.done)
      assert.match(err, /^swam: .*swam-salvage: .*\n$/)
      assert.equal(existsSync(trap), true)
    }
  })
}

test('in the folder only regular files of our names are removed, or are images', async (context) => {
  const at = host(context)
  mkdirSync(at.salvage, { mode: 0o700 })
  const secret = join(at.folder, 'secret')
  writeFileSync(secret, randomBytes(2 * MIB, 1))
  symlinkSync(secret, join(at.salvage, NAME))
  mkdirSync(join(at.salvage, `${UUID}-vdb.raw`))
  writeFileSync(join(at.salvage, 'notes'), randomBytes(2 * MIB, 1))
  execFileSync('mkfifo', [join(at.salvage, `${UUID}-vdc.raw`)])
  const before = at.kept()
  assert.deepEqual(await listImages([at.images]), [])
  const { code, out, err } = await at.swam('salvage', 'remove')
  assert.deepEqual([code, out], [EXIT.done, ''])
  assert.equal(err.match(/not made by SWAM: it is left alone/g)?.length, 4)
  assert.deepEqual(at.kept(), before)
  assert.equal(existsSync(secret), true)
  // Nor is anything linked over it.
  await assert.rejects(
    keepImage(at.image('a.raw'), { uuid: UUID, target: 'vda', format: 'raw' }, [at.images]),
    /not a regular file/,
  )
})

test('no image of a guest is made in that folder, or kept from it', async (context) => {
  const at = host(context)
  mkdirSync(at.salvage, { mode: 0o700 })
  const path = join(at.salvage, `${OTHER}-vda.raw`)
  writeFileSync(path, randomBytes(2 * MIB, 1))
  await at.mark(path)
  await at.hook('stopped end', [['vda', 'raw', path]])
  assert.deepEqual(at.kept(), [`${OTHER}-vda.raw`])
  assert.equal(statSync(path).nlink, 1)
})

test('an image that is another name of somebody’s file: only a name comes and goes, its content is not touched', async (context) => {
  const at = host(context)
  const precious = join(at.folder, 'precious')
  writeFileSync(precious, randomBytes(2 * MIB, 1), { mode: 0o600 })
  linkSync(precious, at.path('a.raw'))
  const before = lstatSync(precious)
  await at.mark(at.path('a.raw'))
  await at.hook('stopped end', [['vda', 'raw', at.path('a.raw')]])
  await at.swam('salvage', 'remove')
  assert.deepEqual(at.kept(), [])
  const after = lstatSync(precious)
  assert.deepEqual(
    [after.nlink, after.size, after.mode, after.mtimeMs],
    [2, before.size, before.mode, before.mtimeMs],
  )
})

test('what is put in the place of the image meanwhile is not kept', async (context) => {
  const at = host(context)
  const path = at.image('a.raw')
  const secret = join(at.folder, 'secret')
  writeFileSync(secret, randomBytes(2 * MIB, 1))
  const disk = { uuid: UUID, target: 'vda', format: 'raw' } as const
  // Swapped all the time while it is linked again and again: each link that stays is the image itself.
  let going = true
  const swap = (async () => {
    while (going) {
      renameSync(path, at.path('away'))
      symlinkSync(secret, path)
      await new Promise((resolve) => setImmediate(resolve))
      rmSync(path)
      renameSync(at.path('away'), path)
      await new Promise((resolve) => setImmediate(resolve))
    }
  })()
  for (let turn = 0; turn < 200; turn++) {
    await keepImage(path, disk, [at.images]).catch(() => false)
    for (const name of at.kept()) {
      assert.equal(lstatSync(join(at.salvage, name)).isSymbolicLink(), false, name)
      rmSync(join(at.salvage, name))
    }
  }
  going = false
  await swap
  assert.equal(statSync(secret).nlink, 1)
})

// ---- retention and the command -------------------------------------------------------------------------------

test('the announcement of another guest removes what has had its time, and no more', async (context) => {
  const at = host(context)
  const path = at.image('a.raw')
  await at.mark(path)
  await at.hook('stopped end', [['vda', 'raw', path]])
  rmSync(path)
  assert.equal(await at.hook('migrate begin', []), 0)
  assert.deepEqual(at.kept(), [NAME])
  at.config('[limits]\nsalvageGiB = 0\n')
  assert.equal(await at.hook('migrate begin', []), 0)
  assert.deepEqual(at.kept(), [])
  assert.equal(existsSync(at.salvage), false, 'an empty folder goes too')
})

test('what is kept of a guest that has arrived goes, but not while any guest is coming in', async (context) => {
  const at = host(context)
  for (const [name, uuid] of [
    ['a.raw', UUID],
    ['b.raw', OTHER],
  ] as const) {
    await keepImage(at.image(name), { uuid, target: 'vda', format: 'raw' }, [at.images])
    rmSync(at.path(name))
  }
  const config = await loadConfig(join(at.folder, 'swam.toml'))
  const running = async (): Promise<ReadonlySet<string>> => new Set([OTHER])
  await at.mark()
  assert.deepEqual(await sweepSalvage(config, { running }), [])
  rmSync(join(at.folder, 'incoming', 'vm'))
  assert.deepEqual(
    (await sweepSalvage(config, { running })).map(({ uuid }) => uuid),
    [OTHER],
  )
  assert.deepEqual(at.kept(), [NAME])
})

test('swam salvage: lists, sweeps, removes of one guest and of all', async (context) => {
  const at = host(context)
  assert.deepEqual(await at.swam('salvage', 'list'), { code: 0, out: 'nothing is kept\n', err: '' })
  const [a, b] = [at.image('a.raw'), at.image('b.raw', 4 * MIB)]
  await keepImage(a, { uuid: UUID, target: 'vda', format: 'raw' }, [at.images])
  await keepImage(b, { uuid: OTHER, target: 'vdb', format: 'qcow2' }, [at.images])
  rmSync(a)
  const listed = JSON.parse((await at.swam('--json', 'salvage', 'list')).out)
  assert.equal(listed.version, 1)
  for (const each of listed.images) {
    assert.ok(each.ageMs >= 0 && each.ageMs < 60_000)
    delete each.ageMs
  }
  const blocks = (mib: number): number => mib * MIB
  assert.deepEqual(listed.images, [
    {
      uuid: UUID,
      target: 'vda',
      format: 'raw',
      path: join(at.salvage, NAME),
      bytes: blocks(2),
      inPlace: false,
    },
    {
      uuid: OTHER,
      target: 'vdb',
      format: 'qcow2',
      path: join(at.salvage, `${OTHER}-vdb.qcow2`),
      bytes: blocks(4),
      inPlace: true,
    },
  ])
  const table = (await at.swam('salvage', 'list')).out
  assert.match(table, /^GUEST +DISK +SIZE +SINCE +PATH\n33333333-.* vda +2\.0 MiB/)
  assert.match(table, /still in its place/)
  assert.deepEqual(await at.swam('salvage', 'sweep'), { code: 0, out: '', err: '' })
  assert.equal((await at.swam('salvage', 'remove', UUID.replaceAll('3', '5'))).code, EXIT.notFound)
  assert.equal((await at.swam('salvage', 'remove', UUID)).out, '1 image removed\n')
  assert.deepEqual(at.kept(), [`${OTHER}-vdb.qcow2`])
  await at.swam('salvage', 'remove')
  assert.deepEqual(at.kept(), [])
  assert.equal(existsSync(b), true, 'an image in its place stays')
})
