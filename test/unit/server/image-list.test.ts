/** Formats of images: libvirt's word of guests' disks, then root's, and raw where anybody has it as raw. */
import assert from 'node:assert/strict'
import { mkdirSync, mkdtempSync, rmSync, symlinkSync, truncateSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { basename, join } from 'node:path'
import { type TestContext, test } from 'node:test'
import { LIBVIRT_DISK_CALLS_MAX, LISTED_GUESTS_MAX } from '../../../lib/core/limits.ts'
import { createLog } from '../../../lib/core/log.ts'
import { type ImageFormatEntry, imageFormats } from '../../../lib/host/domain-xml.ts'
import { Libvirt } from '../../../lib/host/libvirt.ts'
import { ImageList } from '../../../server/image-list.ts'

const silent = createLog({ level: 'silent' })

function place(context: TestContext, names: readonly string[]): (name: string) => string {
  const directory = mkdtempSync(join(tmpdir(), 'swam-list-'))
  context.after(() => rmSync(directory, { recursive: true, force: true }))
  for (const name of names) {
    mkdirSync(join(directory, name, '..'), { recursive: true })
    writeFileSync(join(directory, name), '')
    truncateSync(join(directory, name), 1024 * 1024)
  }
  return (name) => join(directory, name)
}

async function formats(list: ImageList): Promise<Record<string, string>> {
  return Object.fromEntries((await list.list()).map(({ path, format }) => [basename(path), format ?? 'raw']))
}

test('what a guest has as qcow2 is one; what another has as raw is raw, whoever says otherwise', async (context) => {
  const path = place(context, ['a.qcow2', 'b.img', 'c.img', 'd.img'])
  symlinkSync(path('b.img'), path('link'))
  const said: ImageFormatEntry[] = [
    { path: path('link'), format: 'qcow2' },
    { path: path('c.img'), format: 'qcow2' },
    { path: path('c.img'), format: 'raw' },
    { path: '/nowhere/x', format: 'qcow2' },
  ]
  const list = new ImageList({
    images: [path('.')],
    qcow2: [path('c.img')],
    formats: async () => said,
    log: silent,
  })
  assert.equal((await formats(list))['b.img'], 'raw', 'nobody said anything yet')
  await list.ask()
  assert.deepEqual(await formats(list), {
    'a.qcow2': 'raw',
    'b.img': 'qcow2',
    'c.img': 'raw',
    'd.img': 'raw',
  })
})

test('root names files, and directories in which *.qcow2 are such', async (context) => {
  const path = place(context, ['guests/a.qcow2', 'templates/b.qcow2', 'templates/c.img', 'guests/d.img'])
  const list = new ImageList({
    images: [path('guests'), path('templates')],
    qcow2: [path('templates'), path('guests/d.img'), path('missing')],
    formats: async () => [],
    log: silent,
  })
  assert.deepEqual(await formats(list), {
    'a.qcow2': 'raw',
    'b.qcow2': 'qcow2',
    'c.img': 'raw',
    'd.img': 'qcow2',
  })
})

test('what libvirt said stays while it does not answer', async (context) => {
  const path = place(context, ['a.qcow2'])
  let answers = true
  const list = new ImageList({
    images: [path('.')],
    qcow2: [],
    formats: async () => {
      if (!answers) throw new Error('libvirtd is not there')
      return [{ path: path('a.qcow2'), format: 'qcow2' }]
    },
    log: silent,
  })
  await list.ask()
  answers = false
  await list.ask()
  assert.deepEqual(await formats(list), { 'a.qcow2': 'qcow2' })
})

test('the XML of a guest tells its disks and what they stand on', () => {
  const disk = (inner: string, type = 'file'): string => `<disk type='${type}' device='disk'>${inner}</disk>`
  const xml = `<domain type='kvm'><name>vm</name><devices>
    ${disk(
      "<driver name='qemu' type='qcow2'/><source file='/i/top.qcow2'/><target dev='vda'/>" +
        "<backingStore type='file'><format type='qcow2'/><source file='/i/mid.qcow2'/>" +
        "<backingStore type='file'><format type='raw'/><source file='/i/base.raw'/><backingStore/></backingStore></backingStore>",
    )}
    ${disk("<driver name='qemu' type='raw'/><source file='/i/b.raw'/><target dev='vdb'/>")}
    ${disk("<source file='/i/c.img'/><target dev='vdc'/>")}
    ${disk("<driver type='qcow2'/><source dev='/dev/vg/lv'/><target dev='vdd'/>", 'block')}
    ${disk("<driver type='qcow2'/><source file='relative'/><target dev='vde'/>")}
    ${disk("<driver type='qcow2'/><target dev='vdf'/>")}
  </devices></domain>`
  assert.deepEqual(imageFormats(xml), [
    { path: '/i/top.qcow2', format: 'qcow2' },
    { path: '/i/mid.qcow2', format: 'qcow2' },
    { path: '/i/base.raw', format: 'raw' },
    { path: '/i/b.raw', format: 'raw' },
    { path: '/i/c.img', format: 'raw' },
    { path: '/dev/vg/lv', format: 'qcow2' },
  ])
  assert.throws(() => imageFormats('<pool/>'), /expected <domain>/)
  const deep = `<domain><devices>${disk(`<source file='/i/0'/>${"<backingStore><format type='qcow2'/><source file='/i/n'/>".repeat(20)}${'</backingStore>'.repeat(20)}`)}</devices></domain>`
  assert.equal(imageFormats(deep).length, 21)
})

test('libvirt is asked for each guest, for so many at most; one that does not answer has no say', async () => {
  const uuid = (number: number): string => `33333333-3333-4333-8333-${String(number).padStart(12, '0')}`
  const asked = new Set<string>()
  let atOnce = 0
  let most = 0
  const libvirt = new Libvirt({
    run: async (argv) => {
      if (argv.includes('list')) {
        assert.ok(argv.includes('--all'), 'also those that do not run')
        return [
          '',
          'no uuid',
          ...Array.from({ length: 2 * LISTED_GUESTS_MAX }, (_, number) => uuid(number)),
        ].join('\n')
      }
      const id = argv.at(-1)!
      asked.add(id)
      most = Math.max(most, ++atOnce)
      await new Promise((resolve) => setImmediate(resolve))
      atOnce--
      if (id === uuid(1)) throw new Error('libvirt works on it')
      return `<domain><devices><disk><source file='/i/${id}'/></disk></devices></domain>`
    },
  })
  const entries = await libvirt.imageFormats()
  assert.equal(asked.size, LISTED_GUESTS_MAX)
  assert.equal(entries.length, LISTED_GUESTS_MAX - 1)
  assert.ok(most <= LIBVIRT_DISK_CALLS_MAX, `${most} at once`)
})

test('the disks of one guest are asked for a few at a time', async () => {
  const uuid = '33333333-3333-4333-8333-333333333333'
  const disk = (at: number): string => `<disk><source file='/i/${at}'/><target dev='d${at}'/></disk>`
  const xml = `<domain><name>vm</name><uuid>${uuid}</uuid><devices>${Array.from({ length: 40 }, (_, at) => disk(at)).join('')}</devices></domain>`
  let atOnce = 0
  let most = 0
  const libvirt = new Libvirt({
    run: async (argv) => {
      if (argv.includes('domstate')) return 'running\n'
      if (argv.includes('dumpxml')) return xml
      most = Math.max(most, ++atOnce)
      await new Promise((resolve) => setImmediate(resolve))
      atOnce--
      return `Capacity:       ${argv.at(-1)!.slice(1)}\n`
    },
  })
  const domain = await libvirt.runningDomain(uuid)
  assert.deepEqual(
    domain?.disks.map(({ capacity }) => capacity),
    Array.from({ length: 40 }, (_, at) => at),
  )
  assert.equal(most, LIBVIRT_DISK_CALLS_MAX)
})
