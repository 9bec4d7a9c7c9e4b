/**
 * Disks of guests that lie outside of `images`, as the real virsh tells of them: libvirt's own test driver has the guests (in virsh's
 * process, without a daemon). Mends are run, but for systemd's part.
 */
import assert from 'node:assert/strict'
import { execFileSync } from 'node:child_process'
import { existsSync, mkdirSync, mkdtempSync, realpathSync, rmSync, symlinkSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { type TestContext, test } from 'node:test'
import { loadConfig } from '../../../config/load.ts'
import { DOCTOR_DISKS_NAMED_MAX } from '../../../lib/core/limits.ts'
import { Libvirt } from '../../../lib/host/libvirt.ts'
import type { Finding } from '../../../server/doctor/finding.ts'
import { checkGuests } from '../../../server/doctor/guests.ts'
import type { Place } from '../../../server/doctor/place.ts'
import { kindsOf, shownVolumes } from '../../../server/doctor/volumes.ts'

/** Root's, on every machine; nothing of ours is made there. */
const ROOTS = '/usr/share'

class Host {
  readonly folder: string
  readonly config: string
  readonly #guests: string[] = []

  constructor(context: TestContext, text = 'site = "a"\nimages = ["DIR/images"]\n') {
    this.folder = realpathSync(mkdtempSync(join(tmpdir(), 'swam-guests-')))
    context.after(() => rmSync(this.folder, { recursive: true }))
    mkdirSync(join(this.folder, 'images'))
    this.config = join(this.folder, 'swam.toml')
    writeFileSync(this.config, text.replaceAll('DIR', this.folder))
  }

  define(name: string, disks: string): void {
    const number = String(this.#guests.length).padStart(12, '0')
    const file = join(this.folder, `${name}.xml`)
    writeFileSync(
      file,
      `<domain type='test'><name>${name}</name><uuid>33333333-3333-4333-8333-${number}</uuid><memory>1024</memory>
<os><type>hvm</type></os><devices>${disks}</devices></domain>`,
    )
    this.#guests.push(`<domain file='${file}'/>`)
  }

  async findings(): Promise<Finding[]> {
    const node = join(this.folder, 'node.xml')
    writeFileSync(node, `<node>${this.#guests.join('')}</node>`)
    const config = await loadConfig(this.config)
    const place = { config, configPath: this.config } as unknown as Place
    return await checkGuests(place, new Libvirt({ uri: `test://${node}` }))
  }

  mend(finding: Finding): void {
    const words = finding.mend.split(' && ').filter((part) => !part.startsWith('systemctl '))
    execFileSync('sh', ['-c', words.join(' && ')])
  }
}

function disk(target: string, path: string, more = '', device = 'disk'): string {
  const [type, attribute] = path.startsWith('/dev/') ? ['block', 'dev'] : ['file', 'file']
  return `<disk type='${type}' device='${device}'><source ${attribute}='${path}'/><target dev='${target}'/>${more}</disk>`
}

test('a disk in a directory that is not named: guest, disk, path, and the line that names it', async (context) => {
  const host = new Host(context)
  host.define('web', disk('vda', `${ROOTS}/web.img`) + disk('vdb', join(host.folder, 'images/web.img')))
  host.define('db', disk('vda', `${ROOTS}/db.qcow2`, "<driver type='qcow2'/>"))
  const [found, ...others] = await host.findings()
  assert.deepEqual(others, [])
  assert.deepEqual([found?.id, found?.level], ['images-outside', 'warning'])
  assert.match(
    found!.what,
    /vda of web \(\/usr\/share\/web\.img\), vda of db \(\/usr\/share\/db\.qcow2\) lie in no directory/,
  )
  assert.match(found!.mend, /&& systemctl restart swamd$/)
})

test('the mend adds what is missing to the list, whatever form that has, and then nothing is found', async (context) => {
  for (const [images, before] of [
    ['images = ["DIR/images"]', ['DIR/images']],
    ['  images=[]', []],
    ['images = [\n  "DIR/images", # ours\n]', ['DIR/images']],
    ['# images = ["/srv"]', ['/var/lib/libvirt/images']],
  ] as const) {
    const host = new Host(context, `site = "a"\n${images}\nshare = "images"\n`)
    host.define(
      'web',
      disk('vda', `${ROOTS}/web.img`) + disk('vdb', '/usr/lib/web.img') + disk('vdc', '/dev/swamvg/web'),
    )
    const findings = await host.findings()
    assert.deepEqual(
      findings.map(({ id }) => id),
      ['images-outside', 'images-volume'],
      images,
    )
    for (const finding of findings) {
      const shown = finding.mend.split(' && ').filter((part) => !/system/.test(part))
      host.mend({ ...finding, mend: shown.join(' && ') })
    }
    const { images: after } = await loadConfig(host.config)
    assert.deepEqual(
      [...after].sort(),
      [ROOTS, '/usr/lib', '/dev/swamvg', ...before.map((one) => one.replace('DIR', host.folder))].sort(),
      images,
    )
    assert.deepEqual(await host.findings(), [], images)
  }
})

test('what libvirt does not copy, and what has no path here, does not count; nor what links lead inside', async (context) => {
  const host = new Host(context)
  writeFileSync(join(host.folder, 'images/a.img'), 'x')
  symlinkSync(join(host.folder, 'images/a.img'), join(host.folder, 'link.img'))
  host.define(
    'web',
    [
      disk('hda', `${ROOTS}/x.iso`, '<readonly/>', 'cdrom'),
      disk('fda', `${ROOTS}/x.fd`, '', 'floppy'),
      disk('vda', `${ROOTS}/ro.img`, '<readonly/>'),
      disk('vdb', `${ROOTS}/both.img`, '<shareable/>'),
      disk('vdc', join(host.folder, 'link.img')),
      "<disk type='network' device='disk'><source protocol='nbd' name='x'><host name='h'/></source><target dev='vdd'/></disk>",
    ].join(''),
  )
  assert.deepEqual(await host.findings(), [])
})

test('a link of images that leads outside: where it leads counts; a directory below one of images is another one', async (context) => {
  const host = new Host(context)
  symlinkSync(`${ROOTS}/swam-none`, join(host.folder, 'images/dangling'))
  symlinkSync('/usr/bin/env', join(host.folder, 'images/link'))
  mkdirSync(join(host.folder, 'images/below'))
  host.define(
    'web',
    disk('vda', join(host.folder, 'images/link')) + disk('vdb', join(host.folder, 'images/below/b.img')),
  )
  const findings = await host.findings()
  assert.match(findings[0]!.what, /^vda of web \(\/usr\/bin\/env\) lies/)
  assert.match(findings[0]!.mend, /"\/usr\/bin", /)
  assert.match(findings[1]!.what, /^vdb of web \(.*images\/below\/b\.img\) lies/)
})

test("a directory that is not root's alone is not named: the image goes to one that is", async (context) => {
  const host = new Host(context)
  const mine = join(host.folder, 'mine')
  mkdirSync(mine)
  writeFileSync(join(mine, 'web.img'), 'the image')
  host.define('web', disk('vda', join(mine, 'web.img')))
  const [found, ...others] = await host.findings()
  assert.deepEqual(others, [])
  // /tmp is everybody's; for swamd there is another one.
  assert.doesNotMatch(found!.mend, /sed -i/)
  const [off, free, move, define, ...rest] = found!.mend.split(' && ')
  assert.equal(off, "virsh domstate --domain web | grep -qx 'shut off'")
  assert.deepEqual(rest, [])
  // Where one of that name lies already nothing is moved, and no guest gets another one's image.
  writeFileSync(join(host.folder, 'images/web.img'), 'another')
  assert.throws(() => execFileSync('sh', ['-c', `${free} && ${move}`]))
  rmSync(join(host.folder, 'images/web.img'))
  execFileSync('sh', ['-c', `${free} && ${move}`])
  assert.ok(existsSync(join(host.folder, 'images/web.img')))
  const [, edit] = define!.split(' | ')
  const xml = execFileSync('sh', ['-c', edit!], {
    input: `<source file='${join(mine, 'web.img')}'/>`,
    encoding: 'utf8',
  })
  assert.equal(xml, `<source file='${join(host.folder, 'images/web.img')}'/>`)
  assert.match(define!, /^virsh dumpxml --inactive .* \| virsh define \/dev\/stdin$/)
})

test('a disk by the name of its device alone: its other names are shown, /dev is not named', async (context) => {
  const host = new Host(context)
  host.define('web', disk('vda', '/dev/swam-none'))
  const [found, ...others] = await host.findings()
  assert.deepEqual([others, found?.id], [[], 'images-volume'])
  assert.match(found!.mend, /^find \/dev .* -ef \/dev\/swam-none \\; -print$/)
  execFileSync('sh', ['-c', found!.mend])
})

test('the unit is to show the kinds of device that are there; of one that is not, LVM', async () => {
  const devices = `Character devices:\n  7 vcs\n\nBlock devices:\n  7 loop\n  8 sd\n253 device-mapper\n254 odd';id;'\n259 blkext\n`
  assert.deepEqual(
    [...kindsOf(devices)],
    [
      [7, 'loop'],
      [8, 'sd'],
      [253, 'device-mapper'],
      [259, 'blkext'],
    ],
  )
  assert.deepEqual([...kindsOf('')], [])
  assert.match(
    await shownVolumes(['/dev/swam-none/a', '/dev/null', '/dev/swam-none/b']),
    /printf '\[Service\]\\nPrivateDevices=no\\nDeviceAllow=block-device-mapper r\\n' >\/etc\/systemd\/system\/swamd\.service\.d\/volumes\.conf$/,
  )
})

test('odd paths become part of no command but as one word', async (context) => {
  const host = new Host(context)
  const odd = "/usr/share/$(id);'|&quot;&amp;"
  host.define('web', disk('vda', `${odd.replace("'", '&apos;')}/web.img`))
  host.define('db', disk('vda', '/dev/swam&apos;$(id)/db'))
  for (const { mend } of await host.findings()) {
    assert.ok(!/sed|dumpxml/.test(mend), mend)
    for (const part of mend.matchAll(/\$\(id\)/g)) assert.match(mend.slice(0, part.index), /'[^']*$/, mend)
  }
})

test('many disks are one finding, which names some', async (context) => {
  const host = new Host(context)
  for (let number = 0; number < DOCTOR_DISKS_NAMED_MAX + 3; number += 1)
    host.define(`g${number}`, disk('vda', `${ROOTS}/g${number}.img`))
  const [found, ...others] = await host.findings()
  assert.deepEqual(others, [])
  assert.match(found!.what, new RegExp(`vda of g${DOCTOR_DISKS_NAMED_MAX - 1} \\([^)]*\\) and 3 more lie`))
})

test('many disks that must be moved: each has its own finding up to a number, since a report has room for so many', async (context) => {
  const host = new Host(context)
  for (let number = 0; number < DOCTOR_DISKS_NAMED_MAX + 3; number += 1)
    host.define(`g${number}`, disk('vda', join(host.folder, `g${number}.img`)))
  const findings = await host.findings()
  assert.equal(findings.length, DOCTOR_DISKS_NAMED_MAX + 1)
  const { what, mend } = findings.at(-1)!
  assert.match(what, /^vda of g8 .*, vda of g10 \([^)]*\) lie in no directory/)
  assert.equal(mend, 'swam doctor')
})

test('without a libvirt that answers nothing is said to be well', async (context) => {
  const host = new Host(context)
  const config = await loadConfig(host.config)
  const place = { config, configPath: host.config } as unknown as Place
  await assert.rejects(checkGuests(place, new Libvirt({ uri: `test://${host.folder}/none.xml` })), /virsh/)
})
