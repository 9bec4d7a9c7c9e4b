/** IP bytes from what `ss -ti` prints, as seen on Debian 12, and of real connections. */
import assert from 'node:assert/strict'
import { once } from 'node:events'
import { type AddressInfo, connect, createServer } from 'node:net'
import { test } from 'node:test'
import { TCP_NAMES_ASKED_MAX } from '../../../lib/core/limits.ts'
import { runCommand } from '../../../lib/host/command.ts'
import { parseSs, TcpMeter, type TcpName, tcpCounts } from '../../../lib/host/tcp-info.ts'

const LINE =
  'ESTAB 0 0 10.8.0.1:22 10.8.0.2:47890\n' +
  '\t ts sack cubic wscale:10,10 rto:204 mss:1448 bytes_sent:10000 bytes_retrans:500 bytes_acked:9500 ' +
  'bytes_received:3000 segs_out:20 segs_in:10 data_segs_out:15 send 1bps'

test('payload both ways with retransmissions, and headers of every segment', () => {
  assert.equal(parseSs(LINE, false), 10_000 + 3000 + 30 * 52)
  assert.equal(parseSs(LINE, true), 10_000 + 3000 + 30 * 72)
  assert.equal(parseSs(LINE.replace('ts sack', 'sack'), false), 10_000 + 3000 + 30 * 40)
  assert.equal(parseSs('', false), undefined)
})

test('real connections are found by their ports in one call, one that is not there is left out', async () => {
  const server = createServer((socket) => socket.resume()).listen(0, '127.0.0.1')
  await once(server, 'listening')
  const { port } = server.address() as AddressInfo
  const socket = connect(port, '127.0.0.1')
  const idle = connect(port, '127.0.0.1')
  try {
    await Promise.all([once(socket, 'connect'), once(idle, 'connect')])
    await new Promise((resolve) => socket.write(Buffer.alloc(100_000), resolve))
    const name = {
      localAddress: '127.0.0.1',
      localPort: socket.localPort!,
      remoteAddress: '127.0.0.1',
      remotePort: port,
    }
    let calls = 0
    const counts = await tcpCounts(
      [{ ...name, localPort: idle.localPort! }, { ...name, localPort: 1 }, name],
      (argv, options) => {
        calls++
        return runCommand(argv, options)
      },
    )
    assert.equal(calls, 1)
    assert.equal(counts.size, 2)
    const idleBytes = counts.get(`127.0.0.1:${idle.localPort}-${port}`)?.ipBytes ?? 0
    assert.ok(idleBytes > 0 && idleBytes < 1000, `${idleBytes} bytes of the connection at rest`)
    const ipBytes = counts.get(`127.0.0.1:${socket.localPort}-${port}`)?.ipBytes ?? 0
    // The upper bound leaves room for retransmissions, which are counted.
    assert.ok(ipBytes > 100_000 && ipBytes < 400_000, `${ipBytes} bytes`)
  } finally {
    socket.destroy()
    idle.destroy()
    server.close()
  }
})

test('who asks at the same time shares a call; who asks while it runs has the next one', async () => {
  const name = (localPort: number): TcpName => ({
    localAddress: '10.8.0.1',
    localPort,
    remoteAddress: '10.8.0.2',
    remotePort: 22,
  })
  const asked: number[][] = []
  const answer = Promise.withResolvers<void>()
  const meter = new TcpMeter(async (argv) => {
    const ports = argv.map((word) => Number(/^:(\d+)$/.exec(word)?.[1])).filter((port) => port > 22)
    asked.push(ports)
    await answer.promise
    return ports
      .map((port) => `ESTAB 0 0 10.8.0.1:${port} 10.8.0.2:22 bytes_sent:${port} segs_out:0\n`)
      .join('')
  })
  const first = [meter.count([name(1001)]), meter.count([name(1002), name(1003)])]
  await new Promise((resolve) => setTimeout(resolve, 20))
  const second = [meter.count([name(1004)]), meter.count([name(1005)])]
  await new Promise((resolve) => setTimeout(resolve, 20))
  assert.deepEqual(asked, [[1001, 1002, 1003]])
  answer.resolve()
  for (const [at, port] of [1001, 1003].entries()) {
    assert.equal((await first[at])?.get(`10.8.0.1:${port}-22`)?.ipBytes, port)
  }
  for (const [at, port] of [1004, 1005].entries()) {
    assert.equal((await second[at])?.get(`10.8.0.1:${port}-22`)?.ipBytes, port)
  }
  assert.deepEqual(asked, [
    [1001, 1002, 1003],
    [1004, 1005],
  ])
  // More than one call takes go in several.
  const many = Array.from({ length: 2 * TCP_NAMES_ASKED_MAX }, (_, at) => meter.count([name(2000 + at)]))
  for (const [at, counts] of many.entries()) {
    assert.equal((await counts).get(`10.8.0.1:${2000 + at}-22`)?.ipBytes, 2000 + at)
  }
  assert.deepEqual(
    asked.slice(2).map((ports) => ports.length),
    [TCP_NAMES_ASKED_MAX, TCP_NAMES_ASKED_MAX],
  )
})
