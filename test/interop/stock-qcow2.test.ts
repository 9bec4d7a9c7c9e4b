/**
 * qcow2 images as sources of the daemon, through real qemu-nbd: what the disk holds is found, also where the file has it compressed or
 * in a file below it; what nobody called a qcow2 is raw, and nothing outside the directories of images is opened.
 */
import assert from 'node:assert/strict'
import { randomBytes } from 'node:crypto'
import { chmod, copyFile, mkdir, open, rm, utimes, writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import { test } from 'node:test'
import { ImageMap } from '../../lib/catalog/image-map.ts'
import { mapPath } from '../../lib/catalog/image-map-format.ts'
import { STOCK_EXPORTS_MAX } from '../../lib/core/limits.ts'
import { MIB } from '../../lib/core/units.ts'
import { inFolder, succeed } from './nbd-peers.ts'
import { aged, share, withStock } from './stock-rig.ts'

/** Text, which qemu-img can compress, but no two blocks alike. */
function text(bytes: number): Buffer {
  return Buffer.from(randomBytes(bytes / 2).toString('hex'), 'latin1')
}

test('a compressed template and a chain are sources of what their disks hold, and their maps of the next daemon', async () => {
  await inFolder(async (folder) => {
    const images = join(folder, 'images')
    await mkdir(images)
    const [template, base, top] = ['template.qcow2', 'base.raw', 'top.qcow2'].map((name) =>
      join(images, name),
    )
    const bytes = text(8 * MIB)
    await writeFile(join(folder, 'flat'), bytes)
    await succeed('qemu-img', ['convert', '-c', '-f', 'raw', '-O', 'qcow2', join(folder, 'flat'), template!])
    const below = randomBytes(6 * MIB)
    await writeFile(base!, below)
    await succeed('qemu-img', ['create', '-q', '-f', 'qcow2', '-b', base!, '-F', 'raw', top!])
    const above = randomBytes(MIB)
    await writeFile(join(folder, 'above'), above)
    const write = `write -q -s ${join(folder, 'above')} 2M 1M`
    await succeed('qemu-io', ['-f', 'qcow2', '-c', write, top!])
    above.copy(below, 2 * MIB)
    for (const path of [template!, base!, top!]) await aged(path)

    const isQcow2 = (path: string): boolean => path.endsWith('.qcow2')
    await withStock(folder, { isQcow2 }, async ({ stock, tend, refresh, indexed, problems }) => {
      await tend()
      assert.deepEqual(problems, [])
      await refresh()
      assert.equal(indexed.filter(({ mapped }) => !mapped).length, 3)
      assert.deepEqual(await share(stock, bytes), { chunks: 1, blocks: 1 })
      assert.deepEqual(await share(stock, below), { chunks: 1, blocks: 1 })
      assert.equal(stock.images.find(({ path }) => path === template)?.size, 8 * MIB)
      await stock.rest(() => true)
      assert.equal(stock.images.length, 0)
    })
    await withStock(folder, { isQcow2 }, async ({ stock, refresh, indexed, problems }) => {
      await refresh()
      assert.deepEqual(problems, [])
      assert.ok(indexed.length === 3 && indexed.every(({ mapped, stale }) => mapped && !stale))
      assert.deepEqual(await share(stock, bytes), { chunks: 1, blocks: 1 })
    })
    // The same files, and nobody says what they are: the bytes of the files themselves, whose maps are others.
    await withStock(folder, {}, async ({ stock, refresh, indexed, problems }) => {
      await refresh()
      assert.deepEqual(problems, [], 'a map of the other kind is no map')
      assert.equal(indexed.filter(({ mapped }) => !mapped).length, 2)
      assert.equal((await share(stock, bytes)).blocks, 0, 'compressed')
      const { blocks } = await share(stock, below)
      assert.equal(blocks, 1, 'what a qcow2 holds as it is lies in its file, block for block')
    })
  })
})

test('nothing is opened that lies elsewhere, has no format, or is no qcow2', async () => {
  await inFolder(async (folder) => {
    const images = join(folder, 'images')
    await mkdir(images)
    const secret = join(folder, 'secret.raw')
    const bytes = randomBytes(2 * MIB)
    await writeFile(secret, bytes)
    const out = join(images, 'out.qcow2')
    await succeed('qemu-img', ['create', '-q', '-f', 'qcow2', '-b', secret, '-F', 'raw', out, '64M'])
    const odd = join(images, 'odd.qcow2')
    await succeed('qemu-img', [
      'create',
      '-q',
      '-f',
      'qcow2',
      '-u',
      '-b',
      join(images, 'guest.raw'),
      '-F',
      'vmdk',
      odd,
      '64M',
    ])
    const guest = join(images, 'guest.raw')
    // A guest wrote the header of such an image into its raw disk.
    await copyFile(out, guest)
    const broken = join(images, 'broken.qcow2')
    await writeFile(broken, randomBytes(2 * MIB))
    const file = await open(out, 'r+')
    await file.truncate(2 * MIB)
    await file.close()
    for (const path of [guest, odd]) {
      const short = await open(path, 'r+')
      await short.truncate(2 * MIB)
      await short.close()
    }
    for (const path of [out, guest, broken, odd]) await aged(path)
    await withStock(
      folder,
      { isQcow2: (path) => path.endsWith('.qcow2') },
      async ({ stock, refresh, problems }) => {
        await refresh()
        assert.match(
          problems.join('\n'),
          /out\.qcow2: it stands on .*secret\.raw, which lies in no directory of images/,
        )
        assert.match(
          problems.join('\n'),
          /odd\.qcow2: expected raw or qcow2 as the format of .*guest\.raw, found "vmdk"/,
        )
        assert.match(problems.join('\n'), /broken\.qcow2: not readable as a qcow2/)
        assert.deepEqual(
          stock.images.map(({ path }) => path),
          [guest],
        )
        assert.deepEqual(await share(stock, bytes), { chunks: 0, blocks: 0 })
        assert.equal((await stock.images[0]!.source.read(0, 4)).toString('latin1'), 'QFI\xfb')
      },
    )
  })
})

test('what a map of the image beneath says is not read again, and the map is the same', async () => {
  await inFolder(async (folder) => {
    const images = join(folder, 'images')
    await mkdir(images)
    // By name the last one is what the others stand on: they are scanned before it.
    const [top, middle, base] = ['1.qcow2', '2.qcow2', '3.raw'].map((name) => join(images, name)) as [
      string,
      string,
      string,
    ]
    const at = 1_700_000_000
    const isQcow2 = (path: string): boolean => path.endsWith('.qcow2')
    const place = (path: string): string => mapPath(join(folder, 'catalog'), path)
    const tended = async (): Promise<void> => {
      await withStock(folder, { isQcow2 }, async ({ tend, problems }) => {
        await tend()
        assert.deepEqual(problems, [])
      })
    }
    const digestOf = (path: string): string => {
      const { map } = ImageMap.at(place(path))
      map.close()
      return map.digest.toString('hex')
    }
    /** The map of the first when of the others only these have one. */
    const madeWith = async (mapped: readonly string[]): Promise<string> => {
      for (const path of [top, middle, base])
        if (!mapped.includes(path)) await rm(place(path), { force: true })
      await tended()
      return digestOf(top)
    }
    const write = async (path: string, what: string): Promise<void> => {
      await succeed('qemu-io', ['-f', 'qcow2', '-c', what, path])
    }
    await writeFile(base, Buffer.concat([randomBytes(40 * MIB), Buffer.alloc(4 * MIB), randomBytes(4 * MIB)]))
    await succeed('qemu-img', ['create', '-q', '-f', 'qcow2', '-b', base, '-F', 'raw', middle, '64M'])
    await write(middle, 'write -q -P 17 20M 1216k')
    await write(middle, 'write -q -z 30M 64k')
    await succeed('qemu-img', ['create', '-q', '-f', 'qcow2', '-b', middle, '-F', 'qcow2', top])
    await write(top, 'write -q -P 18 33M 68k')
    await write(top, 'write -q -z 10M 2M')
    await write(top, 'write -q -P 19 50M 1M')
    for (const path of [top, middle, base]) await utimes(path, at, at)

    const read = await madeWith([])
    assert.equal(await madeWith([middle, base]), read)
    assert.equal(await madeWith([base]), read, 'what nobody above it has is as in the base')

    // A change that nobody can know of: whoever does not read it does not see it.
    const tamper = async (mtime: number): Promise<void> => {
      const file = await open(base, 'r+')
      await file.write(randomBytes(4096), 0, 4096, 5 * MIB)
      await file.close()
      await utimes(base, mtime, mtime)
    }
    await tamper(at)
    assert.equal(await madeWith([middle, base]), read)
    assert.equal(await madeWith([base]), read)
    await rm(place(base))
    assert.equal(
      await madeWith([middle]),
      read,
      'a file that has changed beneath it does not make a map of another image',
    )
    assert.notEqual(await madeWith([]), read)
    // One that can be known: its map is not that of what it is now.
    await madeWith([])
    const before = await madeWith([base])
    await tamper(at - 1)
    assert.notEqual(await madeWith([base]), before)
    // A damaged one is none.
    await writeFile(place(base), randomBytes(5000))
    await rm(place(middle))
    await rm(place(top))
    await withStock(folder, { isQcow2 }, async ({ tend, problems }) => {
      await tend()
      assert.ok(
        problems.every((problem) => problem.startsWith(`map of ${base}: `)),
        problems.join('\n'),
      )
    })
    assert.equal(digestOf(top), await madeWith([]))
  })
})

test('no more exports than allowed are open', async () => {
  await inFolder(async (folder) => {
    const images = join(folder, 'images')
    await mkdir(images)
    await writeFile(join(folder, 'flat'), randomBytes(MIB))
    for (let number = 0; number < STOCK_EXPORTS_MAX + 2; number++) {
      const path = join(images, `${number}.qcow2`)
      await succeed('qemu-img', ['convert', '-f', 'raw', '-O', 'qcow2', join(folder, 'flat'), path])
      await aged(path)
    }
    await withStock(folder, { isQcow2: () => true }, async ({ stock, refresh, problems }) => {
      await refresh()
      assert.equal(stock.images.length, STOCK_EXPORTS_MAX)
      assert.deepEqual(problems, [])
    })
  })
})

test('what reads a qcow2 for the daemon keeps the right to open images, and not that over the network', async () => {
  await inFolder(async (folder) => {
    await chmod(folder, 0o755)
    const image = join(folder, 'a.qcow2')
    await succeed('qemu-img', ['create', '-q', '-f', 'qcow2', image, '8M'])
    // Root's alone: only the capability opens it.
    await chmod(image, 0o600)
    const open = new URL('../../lib/catalog/open-image.ts', import.meta.url)
    const script = `
      const { openImage } = await import(${JSON.stringify(open.href)})
      const { readFileSync, readdirSync } = await import('node:fs')
      const image = { path: ${JSON.stringify(image)}, format: 'qcow2', directories: [] }
      const opened = await openImage(image, { onLost: (error) => { throw error } })
      const status = (pid) => readFileSync('/proc/' + pid + '/status', 'utf8')
      const names = ['CapInh', 'CapEff', 'CapAmb']
      const of = (pid) => names.map((name) => new RegExp(name + ':\\\\s*(\\\\w+)').exec(status(pid))[1])
      const children = readdirSync('/proc/self/task').flatMap((task) =>
        readFileSync('/proc/self/task/' + task + '/children', 'utf8').split(' ').filter(Boolean))
      const [exporter] = children.filter((pid) => status(pid).startsWith('Name:\\tqemu-nbd'))
      console.log(JSON.stringify({ size: opened.size, own: of('self'), exporter: of(exporter) }))
      await opened.close()`
    const caps = '+net_admin,+dac_read_search'
    const as = ['--reuid=65534', '--clear-groups', `--inh-caps=${caps}`, `--ambient-caps=${caps}`]
    const words = [...as, process.execPath, '--input-type=module', '-e', script]
    const temporary = join(folder, 'tmp')
    await mkdir(temporary)
    await chmod(temporary, 0o777)
    const printed = await succeed('env', [`TMPDIR=${temporary}`, 'setpriv', ...words])
    const found = JSON.parse(printed) as {
      readonly size: number
      readonly own: readonly string[]
      readonly exporter: readonly string[]
    }
    // CAP_NET_ADMIN is 12, CAP_DAC_READ_SEARCH 2 (linux/capability.h).
    const [both, one] = [(1 << 12) | (1 << 2), 1 << 2].map((set) => set.toString(16).padStart(16, '0'))
    assert.deepEqual(found, {
      size: 8 * MIB,
      own: [both, both, both],
      exporter: [one, one, one],
    })
  })
})
