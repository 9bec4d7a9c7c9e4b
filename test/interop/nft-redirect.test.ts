/**
 * The redirect against the real kernel: two network namespaces, `here` with libvirtd's and QEMU's uids and our
 * listeners, `peer` with the ports that a migration would connect to. A server says its name first, so that each
 * client learns where it landed. Needs root, nft, setpriv, veth. The namespaces are made and removed here.
 */
import assert from 'node:assert/strict'
import { type ChildProcessByStdio, execFileSync, spawn } from 'node:child_process'
import type { Readable, Writable } from 'node:stream'
import { after, before, test } from 'node:test'
import { setTimeout as sleep } from 'node:timers/promises'
import { Redirect } from '../../lib/host/redirect.ts'

const HERE = `swn-h${process.pid}`
const PEER = `swn-p${process.pid}`
const PORT = 49153
const LISTEN_PORT = 29153
const QEMU_UID = 64055
const SWAM_UID = 64999
const STRANGER_UID = 65534
const ENTRY_4 = { address: '10.9.0.2', port: PORT, listenPort: LISTEN_PORT }
const ENTRY_6 = { address: 'fd00:9:0::2', port: PORT, listenPort: LISTEN_PORT }

/** Listens on the given addresses, says its name, then echoes. */
const SERVER = `
const net = require('node:net')
const [name, ...ends] = process.argv.slice(1)
let waiting = ends.length
for (const end of ends) {
  const at = end.lastIndexOf(' ')
  const server = net.createServer((socket) => {
    socket.on('error', () => {})
    socket.write(name + ' ' + socket.localAddress + ' ' + socket.localPort + '\\n')
    socket.pipe(socket)
  })
  server.listen({ host: end.slice(0, at), port: Number(end.slice(at + 1)) }, () => { if (--waiting === 0) console.log('ready') })
}`
/** Connects and prints what it hears; what it reads from its input it sends. */
const CLIENT = `
const [host, port] = process.argv.slice(1)
const socket = require('node:net').connect({ host, port: Number(port) })
socket.on('error', (error) => { console.log('error ' + error.code); process.exit() })
socket.on('close', () => process.exit())
socket.pipe(process.stdout)
process.stdin.pipe(socket)`

type Child = ChildProcessByStdio<Writable, Readable, null>
const children = new Set<Child>()

function start(argv: readonly string[]): Child {
  const child = spawn(argv[0]!, argv.slice(1), { stdio: ['pipe', 'pipe', 'inherit'] })
  child.stdin.on('error', () => {})
  children.add(child)
  child.on('exit', () => children.delete(child))
  return child
}

function stop(child: Child): Promise<void> {
  if (child.exitCode !== null || child.signalCode !== null) return Promise.resolve()
  return new Promise((resolve) => {
    child.once('exit', () => resolve())
    child.kill('SIGKILL')
  })
}

function lineOf(child: Child, deadlineMs = 20_000): Promise<string> {
  return new Promise((resolve, reject) => {
    let text = ''
    const timer = setTimeout(
      () => reject(new Error(`no line within ${deadlineMs} ms, found ${text}`)),
      deadlineMs,
    )
    const onData = (piece: Buffer): void => {
      text += piece.toString()
      if (!text.includes('\n')) return
      clearTimeout(timer)
      child.stdout.off('data', onData)
      resolve(text.slice(0, text.indexOf('\n')))
    }
    child.stdout.on('data', onData)
    child.once('exit', () => reject(new Error(`ended before a line, found ${text}`)))
  })
}

function client(uid: number, address: string): Child {
  const as = ['setpriv', `--reuid=${uid}`, `--regid=${uid}`, '--clear-groups']
  return start(['ip', 'netns', 'exec', HERE, ...as, process.execPath, '-e', CLIENT, address, String(PORT)])
}

/** Where a connection of this uid lands: `redirected ADDRESS PORT` or `direct ADDRESS PORT`. */
async function landing(uid: number, address: string): Promise<string> {
  const child = client(uid, address)
  try {
    return await lineOf(child)
  } finally {
    await stop(child)
  }
}

/** nft as the daemon runs it: not root, CAP_NET_ADMIN and nothing else. */
const UNPRIVILEGED_NFT = [
  ...['ip', 'netns', 'exec', HERE, 'setpriv', `--reuid=${SWAM_UID}`, `--regid=${SWAM_UID}`, '--clear-groups'],
  ...[
    '--inh-caps=-all,+net_admin',
    '--ambient-caps=-all,+net_admin',
    '--bounding-set=-all,+net_admin',
    'nft',
  ],
]

function makeRedirect(): Redirect {
  return new Redirect({ uids: [0, QEMU_UID], ownUid: SWAM_UID, nft: UNPRIVILEGED_NFT })
}

function nft(...argv: string[]): string {
  return execFileSync('ip', ['netns', 'exec', HERE, 'nft', ...argv], { encoding: 'utf8' })
}

before(async () => {
  if (process.getuid?.() !== 0) throw new Error('this test needs root: it makes network namespaces')
  const ip = (line: string): void => {
    execFileSync('ip', line.split(' '))
  }
  for (const name of [HERE, PEER]) {
    ip(`netns add ${name}`)
    ip(`-n ${name} link set lo up`)
  }
  ip(`-n ${HERE} link add swn0 type veth peer name swn0 netns ${PEER}`)
  for (const [name, last] of [
    [HERE, 1],
    [PEER, 2],
  ] as const) {
    ip(`-n ${name} addr add 10.9.0.${last}/24 dev swn0`)
    ip(`-n ${name} addr add fd00:9::${last}/64 dev swn0 nodad`)
    ip(`-n ${name} link set swn0 up`)
  }
  const direct = ['ip', 'netns', 'exec', PEER, process.execPath, '-e', SERVER, 'direct']
  const redirected = ['ip', 'netns', 'exec', HERE, process.execPath, '-e', SERVER, 'redirected']
  assert.equal(await lineOf(start([...direct, `10.9.0.2 ${PORT}`, `fd00:9::2 ${PORT}`])), 'ready')
  const ends = [`127.77.0.1 ${LISTEN_PORT}`, `::1 ${LISTEN_PORT}`]
  assert.equal(await lineOf(start([...redirected, ...ends])), 'ready')
})

after(async () => {
  await Promise.all([...children].map(stop))
  for (const name of [HERE, PEER]) execFileSync('ip', ['netns', 'del', name])
})

test('only libvirtd and QEMU are caught, on IPv4 and IPv6, with no right but CAP_NET_ADMIN', async () => {
  const redirect = makeRedirect()
  await redirect.start()
  try {
    assert.equal(await landing(0, '10.9.0.2'), `direct 10.9.0.2 ${PORT}`, 'nothing is armed')
    await redirect.arm([ENTRY_4, ENTRY_6], 60_000)
    assert.equal(redirect.armed, 2)
    for (const { uid, address, where } of [
      { uid: 0, address: '10.9.0.2', where: `redirected 127.77.0.1 ${LISTEN_PORT}` },
      { uid: QEMU_UID, address: '10.9.0.2', where: `redirected 127.77.0.1 ${LISTEN_PORT}` },
      { uid: 0, address: '::ffff:10.9.0.2', where: `redirected 127.77.0.1 ${LISTEN_PORT}` },
      { uid: 0, address: 'fd00:9::2', where: `redirected ::1 ${LISTEN_PORT}` },
      { uid: QEMU_UID, address: 'fd00:9::2', where: `redirected ::1 ${LISTEN_PORT}` },
      { uid: STRANGER_UID, address: '10.9.0.2', where: `direct 10.9.0.2 ${PORT}` },
      { uid: SWAM_UID, address: '10.9.0.2', where: `direct 10.9.0.2 ${PORT}` },
      { uid: STRANGER_UID, address: 'fd00:9::2', where: `direct fd00:9::2 ${PORT}` },
    ]) {
      assert.equal(await landing(uid, address), where, `uid ${uid} to ${address}`)
    }
    await redirect.disarm([ENTRY_4])
    assert.equal(await landing(0, '10.9.0.2'), `direct 10.9.0.2 ${PORT}`, 'disarmed')
    assert.equal(await landing(0, 'fd00:9::2'), `redirected ::1 ${LISTEN_PORT}`, 'the other one stays')
    await redirect.disarm([ENTRY_4])
    assert.deepEqual(await redirect.check(), [])
  } finally {
    await redirect.close()
    await redirect.close()
  }
  assert.equal(nft('list', 'ruleset').trim(), '')
})

test('an element expires within 10 s, a refresh keeps it, and an established connection outlives it', async () => {
  const redirect = makeRedirect()
  await redirect.start()
  try {
    await redirect.arm([ENTRY_4])
    await redirect.arm([ENTRY_6])
    const armedAt = performance.now()
    const lasting = client(0, '10.9.0.2')
    assert.equal(await lineOf(lasting), `redirected 127.77.0.1 ${LISTEN_PORT}`)
    // IPv6 is refreshed as the daemon would, IPv4 is not.
    while (performance.now() - armedAt < 9_800) {
      await sleep(2_450)
      await redirect.arm([ENTRY_6])
    }
    assert.equal(await landing(0, '10.9.0.2'), `direct 10.9.0.2 ${PORT}`)
    assert.equal(await landing(0, 'fd00:9::2'), `redirected ::1 ${LISTEN_PORT}`)
    assert.equal(redirect.armed, 1)
    assert.deepEqual(await redirect.check(), [], 'what expired by itself was not taken away by anybody')
    const echo = lineOf(lasting)
    lasting.stdin.write('still here\n')
    assert.equal(await echo, 'still here')
    await redirect.arm([ENTRY_4])
    assert.equal(
      await landing(0, '10.9.0.2'),
      `redirected 127.77.0.1 ${LISTEN_PORT}`,
      'an expired one is armed again',
    )
    await stop(lasting)
  } finally {
    await redirect.close()
  }
})

test('an element moves to another listener in one step', async () => {
  const redirect = makeRedirect()
  await redirect.start()
  try {
    await redirect.arm([{ ...ENTRY_4, listenPort: 29999 }])
    assert.equal(await landing(0, '10.9.0.2'), 'error ECONNREFUSED')
    await redirect.arm([ENTRY_4])
    assert.equal(await landing(0, '10.9.0.2'), `redirected 127.77.0.1 ${LISTEN_PORT}`)
  } finally {
    await redirect.close()
  }
})

for (const { name, vandalism, found } of [
  {
    name: 'the whole ruleset flushed',
    vandalism: ['flush', 'ruleset'],
    found: /the table inet swam was gone/,
  },
  {
    name: 'the table deleted',
    vandalism: ['delete', 'table', 'inet', 'swam'],
    found: /the table inet swam was gone/,
  },
  {
    name: 'the rules flushed',
    vandalism: ['flush', 'chain', 'inet', 'swam', 'output'],
    found: /and 0 rules/,
  },
  {
    name: 'the elements flushed',
    vandalism: ['flush', 'map', 'inet', 'swam', 'to4'],
    found: /10\.9\.0\.2 port 49153/,
  },
]) {
  test(`noticed, repaired and reported: ${name}`, async () => {
    const redirect = makeRedirect()
    await redirect.start()
    try {
      await redirect.arm([ENTRY_4, ENTRY_6], 60_000)
      const lasting = client(0, '10.9.0.2')
      assert.equal(await lineOf(lasting), `redirected 127.77.0.1 ${LISTEN_PORT}`)
      nft(...vandalism)
      assert.equal(await landing(0, '10.9.0.2'), `direct 10.9.0.2 ${PORT}`)
      const repairs = await redirect.check()
      assert.equal(repairs.length, 1)
      assert.match(repairs[0]!.detail, found)
      assert.deepEqual(await redirect.check(), [], 'reported once')
      assert.equal(await landing(0, '10.9.0.2'), `redirected 127.77.0.1 ${LISTEN_PORT}`)
      assert.equal(await landing(0, 'fd00:9::2'), `redirected ::1 ${LISTEN_PORT}`)
      const echo = lineOf(lasting)
      lasting.stdin.write('survived\n')
      assert.equal(await echo, 'survived')
      await stop(lasting)
    } finally {
      await redirect.close()
    }
  })
}

test('arming after a flush repairs by itself, and check() tells of it', async () => {
  const redirect = makeRedirect()
  await redirect.start()
  try {
    await redirect.arm([ENTRY_4], 60_000)
    nft('flush', 'ruleset')
    await redirect.arm([ENTRY_6], 60_000)
    assert.equal(await landing(0, '10.9.0.2'), `redirected 127.77.0.1 ${LISTEN_PORT}`)
    const repairs = await redirect.check()
    assert.equal(repairs.length, 1)
    assert.match(repairs[0]!.detail, /arming failed/)
  } finally {
    await redirect.close()
  }
})

test('tables of others are left alone, and a table that a dead daemon left is replaced', async () => {
  nft('add', 'table', 'inet', 'theirs')
  const first = makeRedirect()
  await first.start()
  await first.arm([{ ...ENTRY_4, listenPort: 29999 }], 60_000)
  const second = makeRedirect()
  await second.start()
  try {
    assert.equal(await landing(0, '10.9.0.2'), `direct 10.9.0.2 ${PORT}`)
  } finally {
    await second.close()
  }
  assert.equal(nft('list', 'tables').trim(), 'table inet theirs')
  nft('delete', 'table', 'inet', 'theirs')
})

test('without the right to change nftables, start says so', async () => {
  const powerless = [
    'ip',
    'netns',
    'exec',
    HERE,
    'setpriv',
    `--reuid=${STRANGER_UID}`,
    '--clear-groups',
    'nft',
  ]
  const redirect = new Redirect({ uids: [0], ownUid: SWAM_UID, nft: powerless })
  await assert.rejects(redirect.start(), /Operation not permitted/)
  await redirect.close()
})
