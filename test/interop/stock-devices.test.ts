/** Block devices as sources of the daemon: a volume group's directory is listed, and its volumes are known by maps that are never exact. */
import assert from 'node:assert/strict'
import { randomBytes } from 'node:crypto'
import { chmod, mkdir, mkdtemp, rm, symlink, utimes, writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import { test } from 'node:test'
import { ImageSource, listImages } from '../../lib/catalog/image-files.ts'
import { ImageMap } from '../../lib/catalog/image-map.ts'
import { MIB } from '../../lib/core/units.ts'
import { Libvirt } from '../../lib/host/libvirt.ts'
import { UNWRITTEN } from '../../lib/host/unwritten.ts'
import { removeUnwrittenImage } from '../../server/cli/create-image.ts'
import { checkGuests } from '../../server/doctor/guests.ts'
import type { Place } from '../../server/doctor/place.ts'
import { inFolder, succeed } from './nbd-peers.ts'
import { share, withStock } from './stock-rig.ts'

const UUID = '33333333-3333-4333-8333-000000000000'

/** A loop device with these bytes, and a directory below /dev that names it as udev would. */
async function withVolume(
  folder: string,
  bytes: Buffer,
  work: (volume: { readonly device: string; readonly group: string }) => Promise<void>,
): Promise<void> {
  const file = join(folder, 'volume')
  await writeFile(file, bytes)
  const device = (await succeed('losetup', ['--find', '--show', file])).trim()
  try {
    const group = await mkdtemp('/dev/swam-test-')
    try {
      await chmod(group, 0o755)
      await symlink(device, join(group, 'guest'))
      await work({ device, group })
    } finally {
      await rm(group, { recursive: true })
    }
  } finally {
    await succeed('losetup', ['--detach', device])
  }
}

test('what a directory of root below /dev names is listed: block devices alone', async () => {
  await inFolder(async (folder) => {
    await withVolume(folder, randomBytes(2 * MIB), async ({ device, group }) => {
      await symlink('/dev/zero', join(group, 'zero'))
      await symlink(join(folder, 'volume'), join(group, 'file'))
      await writeFile(join(group, 'plain'), randomBytes(2 * MIB))
      const [found, ...others] = await listImages([group])
      assert.deepEqual([found?.path, found?.identity.size, others], [device, 2 * MIB, []])
      // Others could put a link to any device there.
      for (const mode of [0o775, 0o757, 0o1777]) {
        await chmod(group, mode)
        const listed = (await listImages([group])).map(({ path }) => path)
        assert.deepEqual(listed, [join(group, 'plain')], mode.toString(8))
      }
      const links = join(folder, 'links')
      await mkdir(links)
      await symlink(device, join(links, 'device'))
      assert.deepEqual(await listImages([links]), [], 'elsewhere a device is no image')
      // An empty file, as the hook makes one.
      await writeFile(join(group, 'empty'), '')
      await utimes(join(group, 'empty'), UNWRITTEN, UNWRITTEN)
      await assert.rejects(
        removeUnwrittenImage(join(group, 'empty'), [group]),
        /no image is made below \/dev, or removed/,
      )
    })
  })
})

test('the doctor counts a volume by whichever of its names, and says which directory to name', async () => {
  await inFolder(async (folder) => {
    await withVolume(folder, randomBytes(2 * MIB), async ({ device, group }) => {
      const guest = join(folder, 'guest.xml')
      const node = join(folder, 'node.xml')
      const disk = (target: string, path: string): string =>
        `<disk type='block' device='disk'><source dev='${path}'/><target dev='${target}'/></disk>`
      await writeFile(
        guest,
        `<domain type='test'><name>web</name><uuid>${UUID}</uuid><memory>1024</memory><os><type>hvm</type></os><devices>
${disk('vda', join(group, 'guest'))}${disk('vdb', device)}</devices></domain>`,
      )
      await writeFile(node, `<node><domain file='${guest}'/></node>`)
      const configPath = join(folder, 'swam.toml')
      await writeFile(configPath, 'site = "a"\n')
      const mends: string[] = []
      const found = async (images: readonly string[]): Promise<string[]> => {
        const place = { config: { images }, configPath } as unknown as Place
        const findings = await checkGuests(place, new Libvirt({ uri: `test://${node}` }))
        mends.push(...findings.map(({ mend }) => mend))
        return findings.map(({ what }) => what)
      }
      assert.deepEqual(await found([group]), [])
      const [named, bare] = await found([folder])
      assert.equal(named, `vda of web (${group}/guest) lies in no directory of images`)
      assert.equal(bare, `vdb of web (${device}) lies in no directory of images`)
      assert.match(mends[0]!, /DeviceAllow=block-loop r/)
      assert.equal((await succeed('sh', ['-c', mends[1]!])).trim(), `${group}/guest`)
    })
  })
})

test('a volume is found by its map, which is never exact', async () => {
  await inFolder(async (folder) => {
    const bytes = randomBytes(8 * MIB)
    await withVolume(folder, bytes, async ({ device, group }) => {
      await withStock(folder, { images: group }, async ({ stock, tend, refresh, problems, indexed }) => {
        await tend()
        await refresh()
        assert.deepEqual(await share(stock, bytes), { chunks: 1, blocks: 1 })
        assert.equal(indexed.length, 2, 'scanned once, then taken from its map')
        // Guessing is enough until the map is old: it is not scanned again and again.
        await tend()
        assert.equal(indexed.length, 2)
        const catalog = join(folder, 'catalog')
        await using source = await ImageSource.open(device)
        assert.equal(ImageMap.open(catalog, device, source.identity), undefined)
        using map = ImageMap.openAny(catalog, device, source.identity)
        assert.equal(map?.blockCount, bytes.length / 4096)
        assert.deepEqual(problems, [])
      })
    })
  })
})
