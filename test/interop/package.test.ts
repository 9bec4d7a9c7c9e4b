/**
 * The Debian package as `make deb` builds it, unpacked and looked into, and its programs run from where they were unpacked.
 * What needs systemd, apt and libvirt is in test/long/package.test.ts.
 */
import assert from 'node:assert/strict'
import { spawn } from 'node:child_process'
import { once } from 'node:events'
import {
  existsSync,
  globSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  readlinkSync,
  rmSync,
  statSync,
} from 'node:fs'
import { writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { basename, dirname, join, resolve } from 'node:path'
import { after, before, test } from 'node:test'
import { WATCHDOG_NOTIFY_MS, WATCHDOG_STALL_MS } from '../../lib/core/limits.ts'
import { bashCompletion } from '../../server/cli/completion.ts'
import { release } from '../../server/release.ts'
import { run, until } from '../lab/run.ts'

const DEB = `out/swam_${release()}_amd64.deb`
/** systemd's own figure, from 0 to 10, times ten; it may become less. */
const EXPOSURE_MAX = 25

const directory = mkdtempSync(join(tmpdir(), 'swam-package-'))
const root = join(directory, 'root')
const lib = join(root, 'usr/lib/swam')
const swam = join(lib, 'bin/swam')
after(() => rmSync(directory, { recursive: true, force: true }))

before(async () => {
  rmSync(DEB, { force: true })
  const { stdout } = await run('debian/build', [], { timeoutMs: 300_000 })
  assert.ok(stdout.endsWith(`${DEB}\n`), stdout.slice(-500))
  await run('dpkg-deb', ['-R', DEB, root])
})

test('what it is called, and what it needs', async () => {
  const { stdout } = await run('dpkg-deb', ['-f', DEB, 'Package', 'Version', 'Architecture', 'Depends'])
  assert.match(stdout, new RegExp(`^Package: swam\nVersion: ${release()}\nArchitecture: amd64\n`))
  for (const name of ['libc6', 'adduser', 'ucf', 'nftables', 'iproute2', 'libvirt-clients', 'qemu-utils']) {
    assert.match(stdout, new RegExp(`^Depends:.*\\b${name}\\b`, 'm'))
  }
  assert.doesNotMatch(stdout, /nodejs|npm/)
})

test('its names, owners and modes', async () => {
  const links = { 'usr/bin/swam': 'swam', 'usr/bin/swam-peer': 'swam-peer', 'usr/sbin/swamd': 'swamd' }
  for (const [path, program] of Object.entries(links)) {
    assert.equal(
      resolve(dirname(join(root, path)), readlinkSync(join(root, path))),
      join(lib, 'bin', program),
    )
  }
  const { stdout } = await run('dpkg-deb', ['-c', DEB])
  const lines = stdout.trim().split('\n')
  assert.ok(lines.length > 200)
  for (const line of lines) {
    const [mode = '', owner, , , , path = ''] = line.split(/\s+/)
    assert.equal(owner, 'root/root', line)
    const program = /\/lib\/swam\/bin\/|\/hooks\/50-swam$|\/bin\/node$/.test(path)
    const expected = mode.startsWith('l')
      ? 'lrwxrwxrwx'
      : path.endsWith('/') || program
        ? 'rwxr-xr-x'
        : 'rw-r--r--'
    assert.ok(mode.endsWith(expected), line)
    // The configuration and the hook are the maintainer scripts' business: dpkg would not take them away, or ask.
    assert.doesNotMatch(path, /^\.\/(etc|var|run|home)\//)
  }
  assert.deepEqual(readFileSync(join(lib, 'hooks/50-swam')), readFileSync('hooks/50-swam'))
  assert.ok(!existsSync(join(root, 'DEBIAN/conffiles')))
  for (const script of ['preinst', 'postinst', 'prerm', 'postrm']) {
    await run('sh', ['-n', join(root, 'DEBIAN', script)])
  }
})

test('only what runs: no types, no headers, no tests, no packages of development', () => {
  interface Entry {
    readonly dev?: boolean
    readonly optional?: boolean
  }
  const lock = JSON.parse(readFileSync('package-lock.json', 'utf8')) as { packages: Record<string, Entry> }
  const wanted = Object.entries(lock.packages)
    .filter(([path, entry]) => path !== '' && entry.dev !== true && entry.optional !== true)
    .map(([path]) => path.replace('node_modules/', ''))
  const found = globSync(['*/package.json', '@*/*/package.json'], { cwd: join(lib, 'node_modules') })
  assert.deepEqual(found.map(dirname).sort(), wanted.sort())
  for (const name of wanted) {
    const here = readdirSync(join('node_modules', name)).filter((file) => /^licen[cs]e/i.test(file))
    const there = readdirSync(join(lib, 'node_modules', name))
    for (const file of here) assert.ok(there.includes(file), `the licence of ${name}`)
  }
  const odd = globSync('**/*.{ts,h,c,cc,o,map,md,a,mk}', { cwd: lib }).filter(
    (path) => !/\/LICEN[CS]E\.md$/i.test(path),
  )
  assert.deepEqual(odd, [])
  assert.deepEqual(readdirSync(lib).sort(), [
    'bin',
    'config',
    'hooks',
    'lib',
    'node_modules',
    'package.json',
    'server',
  ])
})

test('what the code loads by name is there', () => {
  let count = 0
  for (const file of globSync('{config,hooks,lib,server}/**/*.js', { cwd: lib })) {
    for (const [, name] of readFileSync(join(lib, file), 'utf8').matchAll(
      /new URL\('(\.[^']+)', import\.meta\.url\)/g,
    )) {
      count++
      assert.ok(existsSync(resolve(lib, dirname(file), name!)), `${file}: ${name}`)
    }
  }
  assert.ok(count >= 5, `${count} names`)
})

test('lintian finds nothing but what is overridden, each with a reason', async () => {
  const done = await run('lintian', ['--show-overrides', '--tag-display-limit', '0', DEB], {
    timeoutMs: 180_000,
    check: false,
  })
  const tags = done.stdout.split('\n').filter((line) => /^[A-MO-Z]: /.test(line))
  assert.deepEqual(
    tags.filter((line) => !line.startsWith('O: ')),
    [],
  )
  // It did look: each of our overrides is there for something.
  const overrides = readFileSync('debian/swam.lintian-overrides', 'utf8').trim().split('\n')
  const rules = overrides.filter((line) => !line.startsWith('#'))
  assert.ok(rules.length > 0 && overrides[0]!.startsWith('# '))
  for (const rule of rules) {
    const start = rule.replace(/^swam: /, 'O: swam: ').replace(/\[postinst:\*\]$/, '')
    assert.ok(
      tags.some((line) => line.startsWith(start)),
      rule,
    )
  }
  // 2: there are errors, and with --show-overrides those that are overridden count. All else is lintian's own failure.
  assert.ok(done.code === 0 || done.code === 2, done.stderr)
})

test('its Node loads the native crypto of ssh2', async () => {
  const script = 'import(process.argv[1]).then((m) => process.stdout.write(m.sshCrypto()))'
  const { stdout } = await run(join(lib, 'bin/node'), ['-e', script, join(lib, 'lib/peer/ssh.js')], {
    cwd: '/',
  })
  assert.equal(stdout, 'native')
})

test('swam says its version and checks the shipped configuration', async () => {
  assert.equal((await run(swam, ['--version'], { cwd: '/' })).stdout, `${release()}\n`)
  const shipped = join(root, 'usr/share/swam/swam.toml')
  assert.match((await run(swam, ['config', 'check', shipped])).stdout, /: ok\n$/)
  assert.deepEqual(readFileSync(shipped), readFileSync('config/swam.example.toml'))
  const broken = join(directory, 'broken.toml')
  await writeFile(broken, `${readFileSync(shipped, 'utf8')}\nnaem = 1\n`)
  assert.equal((await run(swam, ['config', 'check', broken], { check: false })).code, 6)
})

test('swamd runs from it, with its threads, and ends on SIGTERM', async () => {
  const config = join(directory, 'swam.toml')
  const lines = [
    `site = "a"`,
    `stateDir = "${directory}/state"`,
    `runDir = "${directory}/run"`,
    `redirect = "off"`,
  ]
  await writeFile(config, `${lines.join('\n')}\n`)
  const child = spawn(join(lib, 'bin/swamd'), ['--config', config], {
    cwd: '/',
    stdio: ['ignore', 'pipe', 'inherit'],
  })
  let output = ''
  child.stdout.on('data', (bytes: Buffer) => {
    output += bytes.toString('utf8')
  })
  const gone = once(child, 'exit')
  try {
    await until('swamd to be ready', 30_000, () => (/swamd is ready/.test(output) ? true : undefined))
    const status = JSON.parse((await run(swam, ['--config', config, '--json', 'status'])).stdout) as {
      daemon: { release: string; pid: number }
    }
    assert.deepEqual([status.daemon.release, status.daemon.pid], [release(), child.pid])
  } finally {
    child.kill('SIGTERM')
  }
  assert.deepEqual(await gone, [0, null], output)
  assert.doesNotMatch(output, /"level":"(error|warn)"/)
})

test('the unit is sound, hardened, and its watchdog slower than the one of swamd', async () => {
  const unit = join(root, 'lib/systemd/system/swamd.service')
  const text = readFileSync(unit, 'utf8')
  const value = (key: string): string => new RegExp(`^${key}=(.*)$`, 'm').exec(text)?.[1] ?? ''
  assert.equal(value('Type'), 'notify')
  const watchdogMs = Number(value('WatchdogSec')) * 1000
  assert.ok(watchdogMs >= 3 * WATCHDOG_NOTIFY_MS && watchdogMs >= 2 * WATCHDOG_STALL_MS, String(watchdogMs))
  assert.equal(value('AmbientCapabilities'), 'CAP_NET_ADMIN CAP_DAC_READ_SEARCH')
  assert.equal(value('CapabilityBoundingSet'), value('AmbientCapabilities'))
  const here = join(directory, 'swamd.service')
  await writeFile(here, text.replace('/usr/sbin/swamd', join(lib, 'bin/swamd')))
  const verified = await run('systemd-analyze', ['verify', '--man=no', here])
  assert.equal(verified.stderr, '')
  const offline = ['security', '--offline=true', `--threshold=${EXPOSURE_MAX}`, unit]
  const { stdout } = await run('systemd-analyze', offline)
  assert.match(stdout, /Overall exposure level for swamd\.service: [\d.]+ /)
})

test('the unit that removes old salvage is sound and hardened, and started by its timer alone', async () => {
  const units = join(root, 'lib/systemd/system')
  const here = ['swam-salvage.service', 'swam-salvage.timer'].map((name) => join(directory, name))
  for (const path of here) {
    const text = readFileSync(join(units, basename(path)), 'utf8')
    await writeFile(path, text.replace('/usr/bin/swam', join(lib, 'bin/swam')))
  }
  assert.doesNotMatch(readFileSync(here[0]!, 'utf8'), /\[Install\]/)
  assert.equal((await run('systemd-analyze', ['verify', '--man=no', ...here])).stderr, '')
  await run('systemd-analyze', ['security', '--offline=true', `--threshold=${EXPOSURE_MAX}`, here[0]!])
})

test('man pages and completion are there, and man can show them', async () => {
  const pages = ['man1/swam.1.gz', 'man8/swamd.8.gz', 'man5/swam.toml.5.gz', 'man1/swam-peer.1.gz']
  for (const page of pages) {
    const name = basename(page).replace(/\.\d\.gz$/, '')
    const { stdout } = await run('man', ['-l', join(root, 'usr/share/man', page)], {
      env: { LC_ALL: 'C.UTF-8', MANWIDTH: '100' },
    })
    assert.match(stdout, new RegExp(`${name === 'swam-peer' ? 'swamd' : name} - \\w`), page)
    assert.ok(stdout.split('\n').length > 30, page)
    const { stdout: whatis } = await run('lexgrog', [join(root, 'usr/share/man', page)])
    assert.match(whatis, /: "[\w.-]+ - /)
  }
  const completion = join(root, 'usr/share/bash-completion/completions/swam')
  assert.equal(readFileSync(completion, 'utf8'), bashCompletion())
})

test('it is small enough to be handed around', () => {
  assert.ok(statSync(DEB).size < 60_000_000, `${statSync(DEB).size} bytes`)
})
