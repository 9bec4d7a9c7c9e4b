/**
 * `swam hook` against a real hook.sock: what it tells the daemon, which images it makes (looked at with qemu-img), what it
 * refuses to make on the word of a daemon, and that it lets everything pass unless the config is strict.
 */
import assert from 'node:assert/strict'
import { execFileSync } from 'node:child_process'
import { hash } from 'node:crypto'
import { existsSync } from 'node:fs'
import {
  appendFile,
  mkdir,
  mkdtemp,
  readdir,
  readFile,
  rm,
  stat,
  symlink,
  utimes,
  writeFile,
} from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterEach, beforeEach, test } from 'node:test'
import { loadConfig } from '../../../config/load.ts'
import type { HookReport, HookRequest } from '../../../hooks/decision.ts'
import {
  DOMAIN_XML_BYTES_MAX,
  HOOK_MESSAGE_CHARACTERS_MAX,
  IMAGE_BYTES_MAX,
  SALVAGE_SWEEP_WAIT_MS,
} from '../../../lib/core/limits.ts'
import { KIB, MIB } from '../../../lib/core/units.ts'
import { parseDomain } from '../../../lib/host/domain-xml.ts'
import { UNWRITTEN, unwrittenDisks } from '../../../lib/host/unwritten.ts'
import { userIds } from '../../../lib/host/users.ts'
import { type HookInput, hookCommand, sweep } from '../../../server/cli/hook.ts'
import { type ControlServer, serveControl } from '../../../server/control.ts'

const UUID = '33333333-3333-4333-8333-333333333333'

let directory: string
let images: string
let xml: string
let server: ControlServer | undefined
let requests: HookRequest[]
let reports: HookReport[]
let answer: (request: HookRequest) => unknown

beforeEach(async () => {
  directory = await mkdtemp(join(tmpdir(), 'swam-hook-'))
  images = join(directory, 'images')
  await mkdir(join(images, 'sub'), { recursive: true })
  await mkdir(join(directory, 'elsewhere'))
  await symlink(join(directory, 'elsewhere'), join(images, 'escape'))
  const disks: [string, string, string][] = [
    ['vda', 'raw', join(images, 'a.raw')],
    ['vdb', 'qcow2', join(images, 'sub', 'b:c d.qcow2')],
    ['vdc', 'raw', join(directory, 'elsewhere', 'c.raw')],
    ['vdd', 'raw', join(images, 'escape', 'd.raw')],
    ['vde', 'raw', join(images, 'missing', 'e.raw')],
    ['vdf', 'raw', `${images}/sub/..`],
  ]
  const elements = disks.map(
    ([target, format, path]) =>
      `<disk type='file' device='disk'><driver type='${format}'/><source file='${path}'/><target dev='${target}'/></disk>`,
  )
  xml = `<domain><name>vm</name><uuid>${UUID}</uuid><devices>${elements.join('')}
<disk type='block' device='disk'><driver type='raw'/><source dev='${images}/block'/><target dev='sda'/></disk></devices></domain>`
  await writeConfig('')
  requests = []
  reports = []
  answer = () => ({ action: 'none' })
})

afterEach(async () => {
  await server?.close()
  server = undefined
  await rm(directory, { recursive: true })
})

function writeConfig(more: string): Promise<void> {
  const text = `site = "a"\nrunDir = "${directory}"\nimages = ["${images}"]\n${more}`
  return writeFile(join(directory, 'swam.toml'), text)
}

async function serve(): Promise<void> {
  server = await serveControl({
    path: join(directory, 'hook.sock'),
    mode: 0o600,
    requestBytesMax: 3_000_000,
    handlers: {
      hook: async (params) => {
        requests.push(params as HookRequest)
        return answer(params as HookRequest)
      },
      hookReport: async (params) => {
        reports.push(params as HookReport)
      },
    },
  })
}

async function run(
  argv: readonly string[],
  input: string | AsyncIterable<Buffer> = xml,
  more: Partial<HookInput> = {},
): Promise<{ code: number; out: string; err: string }> {
  let out = ''
  let err = ''
  const output = {
    out: (text: string): void => {
      out += text
    },
    err: (text: string): void => {
      err += text
    },
  }
  async function* text(of: string): AsyncGenerator<Buffer> {
    yield Buffer.from(of)
  }
  const stdin = typeof input === 'string' ? text(input) : input
  const code = await hookCommand({ argv, stdin, ...more }, { config: join(directory, 'swam.toml') }, output)
  return { code, out, err }
}

const BEGIN = ['vm', 'migrate', 'begin']
const NOTHING = { code: 0, out: '', err: '' }

test('the announcement is told to the daemon with its XML', async () => {
  await serve()
  assert.deepEqual(await run(BEGIN), NOTHING)
  assert.deepEqual(requests, [{ guest: 'vm', op: 'migrate', sub: 'begin', xml }])
})

test('later events are told too; a QEMU that is not there is no failure', async () => {
  await serve()
  answer = () => ({ action: 'refuse', message: 'too late for that' })
  await writeConfig('strict = true\n')
  for (const argv of [
    ['vm', 'started', 'begin'],
    ['vm', 'stopped', 'end'],
    ['vm', 'release', 'end'],
  ]) {
    assert.deepEqual(await run(argv), NOTHING)
  }
  assert.deepEqual(
    requests.map((request) => request.op),
    ['started', 'stopped', 'release'],
  )
})

test('events that are not ours, and another guest than the XML, do not reach the daemon', async () => {
  await serve()
  for (const argv of [['vm', 'prepare', 'begin'], ['other', 'migrate', 'begin'], []]) {
    assert.deepEqual(await run(argv), NOTHING)
  }
  assert.deepEqual(requests, [])
})

test('missing images are made: exact size, sparse, private, owned by QEMU, and the daemon is told', async () => {
  await serve()
  const raw = join(images, 'a.raw')
  const qcow2 = join(images, 'sub', 'b:c d.qcow2')
  answer = () => ({
    action: 'create',
    create: [
      { path: raw, format: 'raw', size: 5_000_000_123 },
      { path: qcow2, format: 'qcow2', size: 3 * 2 ** 30 },
    ],
    message: 'two images are new',
  })
  assert.deepEqual(await run(BEGIN), { code: 0, out: '', err: 'swam: two images are new\n' })
  const found = await stat(raw)
  assert.equal(found.size, 5_000_000_123)
  assert.equal(found.blocks, 0)
  const info = JSON.parse(execFileSync('qemu-img', ['info', '--output=json', qcow2], { encoding: 'utf8' }))
  assert.equal(info.format, 'qcow2')
  assert.equal(info['virtual-size'], 3 * 2 ** 30)
  assert.equal(info['backing-filename'], undefined)
  assert.ok((await stat(qcow2)).size < 1_000_000)
  const owner = process.getuid?.() === 0 ? await userIds('libvirt-qemu') : undefined
  for (const path of [raw, qcow2]) {
    const { mode, uid, gid } = await stat(path)
    assert.equal(mode & 0o7777, 0o600)
    assert.deepEqual([uid, gid], [owner?.uid ?? process.getuid?.(), owner?.gid ?? process.getgid?.()])
  }
  assert.deepEqual(await readdir(join(images, 'sub')), ['b:c d.qcow2'], 'no temporary file is left')
  assert.deepEqual(reports, [
    {
      guest: 'vm',
      uuid: UUID,
      images: [
        { path: raw, created: true, error: null },
        { path: qcow2, created: true, error: null },
      ],
    },
  ])
})

test('what was made and never written is known by that, and removed at the end; anything else stays', async () => {
  await serve()
  const made = [join(images, 'a.raw'), join(images, 'sub', 'b:c d.qcow2')]
  const formats = ['raw', 'qcow2'] as const
  const create = made.map((path, at) => ({ path, format: formats[at], size: 1 << 20 }))
  const disks = parseDomain(xml).disks
  for (const [op, sub] of [
    ['stopped', 'end'],
    ['release', 'end'],
  ] as const) {
    answer = () => ({ action: 'create', create })
    await run(BEGIN)
    assert.deepEqual(
      (await unwrittenDisks(disks)).map(({ path }) => path),
      made,
    )
    await appendFile(made[0]!, 'x')
    assert.deepEqual(await unwrittenDisks(disks), [{ target: 'vdb', path: made[1] }])
    answer = () => ({ action: 'none' })
    assert.deepEqual(await run(['vm', op, sub]), NOTHING)
    assert.deepEqual([existsSync(made[0]!), existsSync(made[1]!)], [true, false], 'the written one stays')
    await rm(made[0]!)
  }
})

test('nothing outside of the allowed directories is removed, whatever its time says; no link is followed', async () => {
  await serve()
  const outside = join(directory, 'elsewhere', 'c.raw')
  const escaping = join(directory, 'elsewhere', 'd.raw')
  const linked = join(directory, 'elsewhere', 'linked')
  for (const path of [outside, escaping, linked]) {
    await writeFile(path, '')
    await utimes(path, UNWRITTEN, UNWRITTEN)
  }
  await symlink(linked, join(images, 'a.raw'))
  await run(['vm', 'stopped', 'end'])
  assert.equal(requests.length, 1, 'the daemon is told of the end')
  assert.deepEqual([outside, escaping, linked].map(existsSync), [true, true, true])
  assert.equal(existsSync(join(images, 'a.raw')), true)
})

test('only the announcement is refused, and at `started` a migration that would find an empty disk', async () => {
  await serve()
  answer = () => ({ action: 'stop', message: '/a: missing here' })
  assert.deepEqual(await run(['vm', 'started', 'begin']), {
    code: 10,
    out: '',
    err: 'swam: migration refused: /a: missing here\n',
  })
  for (const [op, sub] of [
    ['migrate', 'begin'],
    ['stopped', 'end'],
    ['release', 'end'],
  ] as const) {
    assert.equal((await run(['vm', op, sub])).code, 0, op)
  }
})

test('what a hook that was cut short has left is no image, and goes', async () => {
  await serve()
  const raw = join(images, 'a.raw')
  // It is given its name when it is whole; this one was killed before.
  const left = join(images, `.swam-new-${hash('sha256', 'a.raw', 'hex').slice(0, 16)}`)
  await writeFile(left, '')
  answer = () => ({ action: 'create', create: [{ path: raw, format: 'raw', size: 1 << 20 }] })
  assert.deepEqual(await run(BEGIN), NOTHING)
  const { size, nlink } = await stat(raw)
  assert.deepEqual([size, nlink], [1 << 20, 1])
  assert.equal(existsSync(left), false)
  assert.deepEqual(
    reports[0]?.images.map((image) => [image.created, image.error]),
    [[true, null]],
  )
  await rm(raw)
})

test('what is there is left alone: a file, an image, a link to nothing', async () => {
  await serve()
  const raw = join(images, 'a.raw')
  const qcow2 = join(images, 'sub', 'b:c d.qcow2')
  await writeFile(raw, 'precious')
  await symlink('/nonexistent/place', qcow2)
  answer = () => ({
    action: 'create',
    create: [
      { path: raw, format: 'raw', size: 4096 },
      { path: qcow2, format: 'qcow2', size: 4096 },
    ],
  })
  assert.deepEqual(await run(BEGIN), NOTHING)
  assert.equal(await readFile(raw, 'utf8'), 'precious')
  assert.deepEqual(await readdir(join(images, 'sub')), ['b:c d.qcow2'])
  assert.deepEqual(
    reports[0]?.images.map((image) => [image.created, image.error]),
    [
      [false, null],
      [false, null],
    ],
  )
})

for (const { name, create, message } of [
  {
    name: 'a path that is not in the XML',
    create: () => ({ path: join(images, 'z.raw'), format: 'raw', size: 1 }),
    message: /not a file disk of vm/,
  },
  {
    name: 'another spelling of one that is',
    create: () => ({ path: `${images}//a.raw`, format: 'raw', size: 1 }),
    message: /not a file disk/,
  },
  {
    name: 'a block device of the XML',
    create: () => ({ path: `${images}/block`, format: 'raw', size: 1 }),
    message: /not a file disk/,
  },
  {
    name: 'another format',
    create: () => ({ path: join(images, 'a.raw'), format: 'qcow2', size: 1 }),
    message: /has it as raw, not as qcow2/,
  },
  {
    name: 'outside the allowed directories',
    create: () => ({ path: join(directory, 'elsewhere', 'c.raw'), format: 'raw', size: 1 }),
    message: /not inside a directory/,
  },
  {
    name: 'outside them through a link',
    create: () => ({ path: join(images, 'escape', 'd.raw'), format: 'raw', size: 1 }),
    message: /not inside a directory/,
  },
  {
    name: 'a directory that is missing',
    create: () => ({ path: join(images, 'missing', 'e.raw'), format: 'raw', size: 1 }),
    message: /no such directory/,
  },
  {
    name: 'a directory',
    create: () => ({ path: `${images}/sub/..`, format: 'raw', size: 1 }),
    message: /expected the name of a file/,
  },
]) {
  test(`not made: ${name}`, async () => {
    await serve()
    answer = () => ({ action: 'create', create: [create()] })
    const { code, err } = await run(BEGIN)
    assert.equal(code, 0)
    assert.match(err, message)
    assert.match(reports[0]?.images[0]?.error ?? '', message)
    assert.deepEqual(await readdir(images), ['escape', 'sub'])
    assert.deepEqual(await readdir(join(directory, 'elsewhere')), [])
    await writeConfig('strict = true\n')
    assert.equal((await run(BEGIN)).code, 10)
  })
}

for (const { name, reply } of [
  { name: 'nothing', reply: () => null },
  { name: 'an unknown action', reply: () => ({ action: 'delete' }) },
  { name: 'create without a list', reply: () => ({ action: 'create', create: 'x' }) },
  {
    name: 'a size beyond the ceiling',
    reply: () => ({
      action: 'create',
      create: [{ path: join(images, 'a.raw'), format: 'raw', size: IMAGE_BYTES_MAX + 1 }],
    }),
  },
  {
    name: 'a size that is no number',
    reply: () => ({
      action: 'create',
      create: [{ path: join(images, 'a.raw'), format: 'raw', size: '4096' }],
    }),
  },
  {
    name: 'a relative path',
    reply: () => ({ action: 'create', create: [{ path: 'a.raw', format: 'raw', size: 1 }] }),
  },
  {
    name: 'a format of its own',
    reply: () => ({ action: 'create', create: [{ path: join(images, 'a.raw'), format: 'vmdk', size: 1 }] }),
  },
  {
    name: 'more images than a guest has disks',
    reply: () => ({ action: 'create', create: new Array(1000).fill({}) }),
  },
]) {
  test(`a daemon that answers badly makes nothing: ${name}`, async () => {
    await serve()
    answer = reply
    const { code, err } = await run(BEGIN)
    assert.equal(code, 0)
    assert.match(err, /^swam: not accelerated: /)
    assert.deepEqual(await readdir(images), ['escape', 'sub'])
  })
}

test('a refusal passes unless strict; then its reason is what the user reads, without control characters', async () => {
  await serve()
  answer = () => ({ action: 'refuse', message: 'peer fra1 is down\u001b[2J' })
  assert.deepEqual(await run(BEGIN), {
    code: 0,
    out: '',
    err: 'swam: not accelerated: peer fra1 is down?[2J\n',
  })
  await writeConfig('strict = true\n')
  assert.deepEqual(await run(BEGIN), {
    code: 10,
    out: '',
    err: 'swam: migration refused (strict = true): peer fra1 is down?[2J\n',
  })
})

for (const { name, prepare, input, message } of [
  { name: 'no daemon', prepare: async () => {}, input: undefined, message: /ENOENT/ },
  {
    name: 'a daemon that hangs',
    prepare: async () => {
      await serve()
      answer = () => new Promise(() => {})
    },
    input: undefined,
    message: /within \d+(\.\d+)? ms/,
  },
  { name: 'XML that is none', prepare: serve, input: 'hello', message: /XML/ },
  {
    name: 'XML without end',
    prepare: serve,
    input: 'x'.repeat(2_000_000),
    message: /stdin: expected at most 1048576 bytes/,
  },
]) {
  test(`fails open, and closed when strict: ${name}`, async () => {
    await prepare()
    for (const { strict, code } of [
      { strict: false, code: 0 },
      { strict: true, code: 10 },
    ]) {
      await writeConfig(`strict = ${strict}\nhookDeadlineMs = 1000\n`)
      const outcome = await run(BEGIN, input)
      assert.equal(outcome.code, code)
      assert.match(outcome.err, message)
      assert.equal(outcome.out, '')
    }
  })
}

test('XML without end is not read to its end', async () => {
  await serve()
  let given = 0
  async function* flood(): AsyncGenerator<Buffer> {
    for (; given < 64 * MIB; given += 64 * KIB) yield Buffer.alloc(64 * KIB, 'x')
  }
  const { code, err } = await run(BEGIN, flood())
  assert.equal(code, 0)
  assert.match(err, /stdin: expected at most 1048576 bytes/)
  assert.ok(given <= DOMAIN_XML_BYTES_MAX + 64 * KIB, `${given} bytes were taken`)
})

test('XML that never ends holds nobody up beyond the deadline', async () => {
  await serve()
  await writeConfig('hookDeadlineMs = 1000\n')
  async function* stalled(): AsyncGenerator<Buffer> {
    yield Buffer.from(xml.slice(0, 50))
    await new Promise((resolve) => setTimeout(resolve, 10_000).unref())
  }
  const { code, err } = await run(BEGIN, stalled())
  assert.equal(code, 0)
  assert.match(err, /the hook was not done within 1000 ms/)
})

test('after the beginning libvirt holds the lock of the guest: the hook has less time', async () => {
  await serve()
  answer = () => new Promise(() => {})
  await writeConfig('hookDeadlineMs = 20000\n')
  const started = performance.now()
  assert.deepEqual(await run(['vm', 'stopped', 'end'], xml, { laterDeadlineMs: 200 }), NOTHING)
  const ms = performance.now() - started
  assert.ok(ms >= 190 && ms < 10_000, `${ms} ms`)
})

test('started has the whole deadline: a redirect that comes too late costs a whole disk', async () => {
  await serve()
  answer = async () => {
    await new Promise((resolve) => setTimeout(resolve, 600))
    return { action: 'stop', message: 'heard' }
  }
  await writeConfig('hookDeadlineMs = 20000\n')
  const { code, err } = await run(['vm', 'started', 'begin'], xml, { laterDeadlineMs: 200 })
  assert.equal(code, 10)
  assert.match(err, /heard/)
})

test('old salvage whose removal takes long is not waited for', async (context) => {
  const config = await loadConfig(join(directory, 'swam.toml'))
  context.mock.timers.enable({ apis: ['setTimeout'] })
  let over = false
  const swept = sweep(config, () => new Promise(() => undefined)).then(() => {
    over = true
  })
  const settled = (): Promise<void> => new Promise((resolve) => setImmediate(resolve))
  context.mock.timers.tick(SALVAGE_SWEEP_WAIT_MS - 1)
  await settled()
  assert.equal(over, false)
  context.mock.timers.tick(1)
  await settled()
  assert.equal(over, true)
  await swept
  // What fails is nobody's business either.
  await sweep(config, async () => {
    throw new Error('EIO')
  })
})

test('a message to the user of virsh is a line or two, however long the daemon talks', async () => {
  await serve()
  answer = () => ({ action: 'none', message: 'x'.repeat(10_000) })
  const { err } = await run(BEGIN)
  assert.equal(err, `swam: ${'x'.repeat(HOOK_MESSAGE_CHARACTERS_MAX)}\n`)
})

test('qemu-img writes to the file that was made, though another one has its name by then, and that one is no image', async () => {
  await serve()
  const victim = join(directory, 'elsewhere', 'victim')
  const qcow2 = join(images, 'sub', 'b:c d.qcow2')
  await writeFile(victim, 'precious')
  // Whoever may write in that directory wins the race: a link stands in the place of the name before qemu-img begins.
  const bin = join(directory, 'bin')
  await mkdir(bin)
  const making = join(images, 'sub', `.swam-new-${hash('sha256', 'b:c d.qcow2', 'hex').slice(0, 16)}`)
  const swap = `mv '${making}' '${qcow2}.moved' && ln -s '${victim}' '${making}'`
  const real = execFileSync('sh', ['-c', 'command -v qemu-img'], { encoding: 'utf8' }).trim()
  await writeFile(join(bin, 'qemu-img'), `#!/bin/sh\n${swap} && exec ${real} "$@"\n`, { mode: 0o755 })
  answer = () => ({ action: 'create', create: [{ path: qcow2, format: 'qcow2', size: MIB }] })
  const path = process.env['PATH']
  process.env['PATH'] = `${bin}:${path}`
  try {
    await run(BEGIN)
  } finally {
    process.env['PATH'] = path
  }
  assert.match(reports[0]?.images[0]?.error ?? '', /something else was put in the place/, 'the race was won')
  assert.deepEqual(await readdir(join(images, 'sub')), ['b:c d.qcow2.moved'])
  assert.equal(await readFile(victim, 'utf8'), 'precious')
  const info = execFileSync('qemu-img', ['info', '--output=json', `${qcow2}.moved`], { encoding: 'utf8' })
  assert.equal(JSON.parse(info).format, 'qcow2')
})

test('a broken config fails open and says where', async () => {
  await writeConfig('strict = 1\n')
  const { code, err } = await run(BEGIN)
  assert.equal(code, 0)
  assert.match(err, /swam\.toml:4: strict: expected true or false, found 1/)
})
