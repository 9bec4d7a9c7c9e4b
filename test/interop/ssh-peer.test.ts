/** The peer channel through a real sshd and the real forced command, on loopback. */
import assert from 'node:assert/strict'
import { spawn, spawnSync } from 'node:child_process'
import { createHash, randomBytes } from 'node:crypto'
import { once } from 'node:events'
import { type AddressInfo, connect, createServer } from 'node:net'
import { join } from 'node:path'
import { type TestContext, test } from 'node:test'
import { setTimeout as sleep } from 'node:timers/promises'
import { LostError, RefusedError, TimeoutError } from '../../lib/core/errors.ts'
import { MIB } from '../../lib/core/units.ts'
import { tcpCounts } from '../../lib/host/tcp-info.ts'
import { PeerListener } from '../../lib/peer/accept.ts'
import type { Bundle } from '../../lib/peer/bundle.ts'
import type { BundleTuning } from '../../lib/peer/options.ts'
import { Rpc } from '../../lib/peer/rpc.ts'
import { type DialOptions, dialBundle, sshCrypto } from '../../lib/peer/ssh.ts'
import { StreamMux } from '../../lib/peer/stream.ts'
import { FRAME_BULK } from '../../lib/wire/frame.ts'
import { FEATURE_RESUME } from '../../lib/wire/hello.ts'
import { startSshd, type TestSshd } from './ssh-server.ts'

const UUID = '3f0c0c9e-6d52-4f0c-9a70-0a3c9f1f9d11'

async function start(
  context: TestContext,
  options?: Parameters<typeof startSshd>[0],
  tuning?: BundleTuning & { readonly features?: readonly string[] },
) {
  const sshd = await startSshd(options)
  context.after(() => sshd.close())
  const accepted: Bundle[] = []
  const listener = await PeerListener.listen({
    path: sshd.socketPath,
    localName: 'source',
    features: ['a', 'b'],
    ...tuning,
    onBundle: (bundle) => accepted.push(bundle),
  })
  context.after(() => listener.close())
  const dial = (more?: Partial<DialOptions>): Promise<Bundle> =>
    dialBundle({ ...dialTo(sshd), ...tuning, ...more })
  return { sshd, accepted, dial }
}

function childrenOf(pid: number): number[] {
  // Between two connections there is none, which is an exit status of pgrep.
  const { stdout } = spawnSync('pgrep', ['-P', String(pid)], { encoding: 'utf8' })
  return stdout.trim().split('\n').filter(Boolean).map(Number)
}

function dialTo(sshd: TestSshd): DialOptions {
  return {
    addresses: ['127.0.0.1'],
    port: sshd.port,
    user: sshd.user,
    privateKey: sshd.privateKey,
    hostKey: sshd.hostKey,
    kind: 'disk',
    migrationId: UUID,
    channels: 2,
    localName: 'target',
    features: ['b', 'c'],
    timeoutMs: 30_000,
  }
}

test("ssh2's native cipher code is loaded", () => {
  assert.equal(sshCrypto(), 'native')
})

test('both ends know the same of a bundle', async (context) => {
  const { accepted, dial } = await start(context)
  const near = await dial()
  const far = accepted[0]!
  assert.equal(near.id, far.id)
  assert.deepEqual([near.kind, far.kind], ['disk', 'disk'])
  assert.deepEqual([near.peer, far.peer], ['source', 'far1'])
  assert.deepEqual([near.migrationId, far.migrationId], [UUID, UUID])
  assert.deepEqual([[...near.features], [...far.features]], [['b'], ['b']])
  const [connection] = near.connections
  assert.deepEqual(far.connections, [
    {
      localAddress: connection!.remoteAddress,
      localPort: connection!.remotePort,
      remoteAddress: connection!.localAddress,
      remotePort: connection!.localPort,
    },
  ])
  await near.close()
  assert.equal(await near.closed, undefined)
  assert.equal(await far.closed, undefined)
})

/** Sends random bytes and gives whether what arrived has the same digest. */
async function transfer(from: Bundle, to: Bundle, totalBytes: number): Promise<boolean> {
  const sent = createHash('sha256')
  const got = createHash('sha256')
  let gotBytes = 0
  const done = Promise.withResolvers<void>()
  to.onFrame = (_, payload) => {
    got.update(payload)
    gotBytes += payload.length
    if (gotBytes >= totalBytes) done.resolve()
  }
  const block = randomBytes(300_000)
  for (let at = 0, turn = 0; at < totalBytes; turn += 1) {
    const start = (turn * 7919) % 150_000
    const part = block.subarray(start, start + Math.min(totalBytes - at, 1 + ((turn * 104_729) % 150_000)))
    sent.update(part)
    await from.send(16 + (turn % 10), [part.subarray(0, 10), part.subarray(10)], FRAME_BULK)
    at += part.length
  }
  await done.promise
  return gotBytes === totalBytes && sent.digest('hex') === got.digest('hex')
}

for (const channels of [1, 8]) {
  test(`64 MiB each way at once over ${channels} channels, digests verified, keys renegotiated on the way`, async (context) => {
    const { accepted, dial } = await start(context, { lines: ['RekeyLimit 16M'] })
    const near = await dial({ channels })
    const far = accepted[0]!
    const results = await Promise.all([transfer(near, far, 64 * MIB), transfer(far, near, 64 * MIB)])
    assert.deepEqual(results, [true, true])
    assert.ok(near.bytesReceived > 64 * MIB && near.bytesSent > 64 * MIB)
    await far.close()
    assert.equal(await near.closed, undefined)
  })
}

test('a bundle over two SSH connections: both ends know both, both carry, digests verified', async (context) => {
  const { accepted, dial } = await start(context)
  const near = await dial({ channels: 4, connections: 2 })
  const far = accepted[0]!
  const ports = (bundle: Bundle, end: 'localPort' | 'remotePort'): number[] =>
    bundle.connections.map((each) => each[end]).sort()
  assert.equal(near.connections.length, 2)
  assert.deepEqual(ports(far, 'remotePort'), ports(near, 'localPort'))
  const results = await Promise.all([transfer(near, far, 32 * MIB), transfer(far, near, 32 * MIB)])
  assert.deepEqual(results, [true, true])
  const counted = await tcpCounts(near.connections)
  for (const name of near.connections) {
    const bytes = [...counted].find(([key]) => key.includes(`:${name.localPort}-`))?.[1].ipBytes ?? 0
    assert.ok(bytes > 16 * MIB, `${bytes} bytes over port ${name.localPort}`)
  }
  await near.close()
  assert.equal(await far.closed, undefined)
})

test('a second SSH connection that is refused or hangs is done without', {
  timeout: 60_000,
}, async (context) => {
  const { sshd, accepted, dial } = await start(context)
  for (const second of ['refused', 'silent'] as const) {
    const server = createServer({ pauseOnConnect: true }, (socket) => {
      context.after(() => socket.destroy())
      socket.on('error', () => undefined)
      if (++connections > 1) {
        if (second === 'refused') socket.destroy()
        return
      }
      const onward = connect(sshd.port, '127.0.0.1')
      onward.on('error', () => socket.destroy())
      socket.pipe(onward).pipe(socket)
    }).listen(0, '127.0.0.1')
    let connections = 0
    await once(server, 'listening')
    const { port } = server.address() as AddressInfo
    const near = await dial({ port, channels: 4, connections: 2, timeoutMs: 6000 })
    assert.deepEqual([connections, near.connections.length], [2, 1], second)
    assert.equal(await transfer(near, accepted.at(-1)!, MIB), true)
    await near.close()
    server.close()
  }
})

test('an end that both ends want is no break, whoever is first', { timeout: 120_000 }, async (context) => {
  const resume = [FEATURE_RESUME]
  const { accepted, dial } = await start(context, undefined, { features: resume })
  for (let turn = 0; turn < 24; turn++) {
    const near = await dial({ channels: 4, features: resume })
    const far = accepted.at(-1)!
    const breaks: string[] = []
    for (const end of [near, far]) {
      end.onFrame = () => undefined
      end.onBroken = (reason) => breaks.push(reason.message)
    }
    await Promise.all([near, far].map((end) => end.send(16, [randomBytes(1000)], FRAME_BULK)))
    // The near end first, both, the far end first; a moment apart, or none.
    const nearFirst = async (): Promise<void> => {
      void near.close()
      await sleep(turn % 4)
      await far.close()
    }
    const farFirst = async (): Promise<void> => {
      void far.close()
      await sleep(turn % 4)
      await near.close()
    }
    await (turn % 2 === 0 ? nearFirst() : farFirst())
    assert.deepEqual(
      [await near.closed, await far.closed, breaks],
      [undefined, undefined, []],
      `turn ${turn}`,
    )
  }
})

test('rpc and streams over bundles of their own connections', async (context) => {
  const { accepted, dial } = await start(context)
  const [control, ram] = await Promise.all([
    dial({ kind: 'control', channels: 1 }),
    dial({ kind: 'ram', channels: 3 }),
  ])
  assert.notEqual(control.connections[0]!.localPort, ram.connections[0]!.localPort)
  const server = new Rpc(accepted.find(({ kind }) => kind === 'control')!)
  server.handle('double', async (params) => Number(params) * 2)
  assert.equal(await new Rpc(control).call('double', 21), 42)
  new StreamMux(accepted.find(({ kind }) => kind === 'ram')!, (meta, stream) => {
    assert.equal(meta.port, 49_152)
    stream.pipe(stream)
  })
  const stream = new StreamMux(ram).open({ port: 49_152 })
  const sent = randomBytes(20 * MIB)
  stream.end(sent)
  const parts: Buffer[] = []
  for await (const part of stream) parts.push(part as Buffer)
  assert.ok(Buffer.concat(parts).equals(sent))
  await Promise.all([control.close(), ram.close()])
})

test('the next address is tried', async (context) => {
  const { dial } = await start(context)
  const bundle = await dial({ addresses: ['127.99.0.1', '::1', '127.0.0.1'] })
  await bundle.close()
  await assert.rejects(dial({ addresses: ['127.99.0.1', '::1'] }), (error) => {
    return error instanceof LostError && /127\.99\.0\.1: .*ECONNREFUSED.*; ::1: /.test(error.message)
  })
  await assert.rejects(dial({ addresses: [] }), /no address is known/)
})

const refusedWith = (message: RegExp) => (error: unknown) => {
  assert.ok(error instanceof RefusedError, `${error}`)
  assert.match(error.message, message)
  return true
}

test('another host key is refused, and both fingerprints are named', async (context) => {
  const { sshd, dial } = await start(context)
  const other = await startSshd()
  context.after(() => other.close())
  await assert.rejects(
    dial({ hostKey: other.hostKey }),
    refusedWith(/the host key SHA256:\S+ is not the one in the config, SHA256:\S+$/),
  )
  await assert.rejects(
    dial({ hostKey: 'ssh-ed25519 AAAA' }),
    refusedWith(/the host key in the config is not one/),
  )
  // A key of a type that this sshd does not have.
  const blob = Buffer.concat([Buffer.from([0, 0, 0, 7]), Buffer.from('ssh-rsa'), Buffer.alloc(64, 1)])
  await assert.rejects(
    dial({ hostKey: `ssh-rsa ${blob.toString('base64')}` }),
    /no host key of the type in the config \(ssh-rsa\)/,
  )
  assert.doesNotMatch(sshd.log(), /Accepted publickey/)
})

test('a key that the far sshd does not know is refused', async (context) => {
  const { sshd, dial } = await start(context)
  await assert.rejects(dial({ privateKey: sshd.strangeKey }), refusedWith(/does not take this key for user/))
  await assert.rejects(dial({ privateKey: 'no key' }), refusedWith(/privateKey/))
})

test('a key without the forced command, or with another one, gives a reason', async (context) => {
  const { sshd, dial } = await start(context)
  await assert.rejects(
    dial({ privateKey: sshd.openKey }),
    refusedWith(/command ended with status 127: .*swam-peer/),
  )
  const nologin = await start(context, { forced: 'echo This account is not available; sleep 1' })
  await assert.rejects(nologin.dial(), /begins with \\?"This account/)
})

test('a far host without swamd gives a reason', async (context) => {
  const sshd = await startSshd()
  context.after(() => sshd.close())
  await assert.rejects(
    dialBundle(dialTo(sshd)),
    refusedWith(/status 3: swam-peer: cannot reach swamd at .*ENOENT/),
  )
})

test('sshd killed: both ends know at once', async (context) => {
  const { sshd, accepted, dial } = await start(context)
  const near = await dial()
  const started = performance.now()
  sshd.kill()
  const errors = await Promise.all([near.closed, accepted[0]!.closed])
  for (const error of errors) assert.ok(error instanceof LostError, `${error}`)
  assert.ok(performance.now() - started < 15_000)
  await assert.rejects(near.send(16, [], FRAME_BULK), LostError)
})

for (const connections of [1, 2]) {
  test(`one SSH connection killed of ${connections}: the bundle goes on over another one, digests verified`, async (context) => {
    const { sshd, accepted, dial } = await start(context, undefined, { features: ['resume'] })
    const near = await dial({ features: ['resume'], channels: 3, connections })
    const far = accepted[0]!
    let over = false
    const killing = (async () => {
      while (!over) {
        await sleep(700)
        // Those that serve connections; the listener lives on.
        if (!over) for (const pid of childrenOf(sshd.process.pid!).slice(0, 1)) process.kill(pid, 'SIGKILL')
      }
    })()
    const results = [
      await Promise.all([transfer(near, far, 64 * MIB), transfer(far, near, 64 * MIB)]),
      await Promise.all([transfer(near, far, 64 * MIB), transfer(far, near, 64 * MIB)]),
    ]
    over = true
    await killing
    assert.deepEqual(results, [
      [true, true],
      [true, true],
    ])
    while (near.broken || far.broken) await sleep(20)
    assert.ok(near.resumes > 0, `${near.resumes} resumes`)
    assert.equal(accepted.length, 1)
    assert.equal(near.connections.length, connections * (near.resumes + 1))
    await near.close()
    assert.equal(await far.closed, undefined)
  })
}

test('a listener that lost the bundle: the dialing end knows at once, not when its time is up', async (context) => {
  const { sshd, accepted, dial } = await start(context, undefined, { features: ['resume'] })
  const near = await dial({ features: ['resume'] })
  accepted[0]!.lost(new LostError('the daemon began anew'))
  for (const pid of childrenOf(sshd.process.pid!)) process.kill(pid, 'SIGKILL')
  const started = performance.now()
  assert.match((await near.closed)?.message ?? '', /cannot be resumed: .*is not known here any more/)
  assert.ok(performance.now() - started < 10_000)
})

test('sshd that stands still: both ends know within the silence allowed', async (context) => {
  const { sshd, accepted, dial } = await start(context, undefined, { pingIntervalMs: 300, silenceMs: 2000 })
  const near = await dial()
  await sleep(2500)
  assert.equal(near.ended, false, 'idle is not silent')
  const serving = childrenOf(sshd.process.pid!)
  for (const pid of serving) process.kill(pid, 'SIGSTOP')
  context.after(() => {
    for (const pid of serving) {
      try {
        process.kill(pid, 'SIGKILL')
      } catch {
        // It has ended by itself.
      }
    }
  })
  const errors = await Promise.all([near.closed, accepted[0]!.closed])
  for (const error of errors) assert.ok(error instanceof LostError, `${error}`)
})

test('a dial has a deadline and can be given up', async (context) => {
  const { dial } = await start(context)
  const mute = createServer((socket) => socket.on('error', () => undefined)).listen(0, '127.0.0.1')
  await once(mute, 'listening')
  context.after(() => mute.close())
  const { port } = mute.address() as { port: number }
  await assert.rejects(dial({ port, timeoutMs: 300 }), TimeoutError)
  const controller = new AbortController()
  const dialing = dial({ port, signal: controller.signal })
  setTimeout(() => controller.abort(new Error('the guest is gone')), 50)
  await assert.rejects(
    dialing,
    (error) => error instanceof LostError && /given up: the guest is gone/.test(error.message),
  )
})

test('swam-peer says how it is used', async () => {
  const child = spawn(join(import.meta.dirname, '../../bin/swam-peer'), ['--peer'], {
    stdio: ['pipe', 'pipe', 'pipe'],
  })
  let said = ''
  child.stderr.on('data', (bytes: Buffer) => {
    said += bytes.toString()
  })
  const [status] = (await once(child, 'close')) as [number]
  assert.equal(status, 2)
  assert.match(said, /usage: swam-peer --peer NAME --socket PATH/)
})

test('swam-peer gives all of it through when one side ends', async (context) => {
  const { mkdtempSync, rmSync } = await import('node:fs')
  const directory = mkdtempSync('/tmp/swam-entry-')
  context.after(() => rmSync(directory, { recursive: true, force: true }))
  const path = join(directory, 'peer.sock')
  const sent = randomBytes(5 * MIB)
  const received: Buffer[] = []
  const server = createServer((socket) => {
    socket.on('data', (bytes) => received.push(bytes))
    socket.end(sent)
  }).listen(path)
  await once(server, 'listening')
  context.after(() => server.close())
  const child = spawn(join(import.meta.dirname, '../../bin/swam-peer'), ['--peer', 'x', '--socket', path], {
    stdio: ['pipe', 'pipe', 'inherit'],
    env: { ...process.env, SSH_CONNECTION: '192.0.2.1 1 192.0.2.2 22' },
  })
  // A reader that is slow at first: nothing may be lost, and nothing may pile up without end.
  await sleep(300)
  const got: Buffer[] = []
  for await (const bytes of child.stdout) got.push(bytes as Buffer)
  assert.ok(Buffer.concat(got).equals(sent))
  assert.equal(
    Buffer.concat(received).toString(),
    '{"peer":"x","version":1,"connection":"192.0.2.1 1 192.0.2.2 22"}\n',
  )
})
