/** /proc/net/tcp: golden rows, and the real file with sockets that this test opens. */
import assert from 'node:assert/strict'
import { once } from 'node:events'
import { mkdir, mkdtemp, rm, truncate, writeFile } from 'node:fs/promises'
import { type AddressInfo, connect, createServer, type Socket } from 'node:net'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { test } from 'node:test'
import { RefusedError } from '../../../lib/core/errors.ts'
import { PROC_NET_BYTES_MAX } from '../../../lib/core/limits.ts'
import { MIB } from '../../../lib/core/units.ts'
import { addressDigits, listeningPorts, parseTcpTable, socketOwner } from '../../../lib/host/procnet.ts'
import { BUSY_MS_MAX, leastBusyMs } from '../../busy.ts'

const HEAD =
  '  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n'

test('golden rows', () => {
  const table = `${HEAD}   0: 0100007F:1F90 0200090A:C001 01 00000000:00000000 00:00000000 00000000 64055        0 12345 1 0000000000000000 20 4 30 10 -1
   1: B80D0120000000000000000007000000:C001 0000000000000000FFFF00000200090A:0016 0A 00000000:00000000 00:00000000 00000000     0        0 777 1 0
cut off: 0100007F:1F9
   2: 0100007G:1F90 0200090A:C001 01 0:0 0:0 0 1 0 5
`
  assert.deepEqual(
    [...parseTcpTable(table)],
    [
      {
        localAddress: addressDigits('127.0.0.1'),
        localPort: 8080,
        remoteAddress: addressDigits('10.9.0.2'),
        remotePort: 49153,
        state: 1,
        uid: 64055,
        inode: 12345,
      },
      {
        localAddress: addressDigits('2001:db8::7'),
        localPort: 49153,
        remoteAddress: addressDigits('10.9.0.2'),
        remotePort: 22,
        state: 10,
        uid: 0,
        inode: 777,
      },
    ],
  )
})

test('one form for every way to write an address', () => {
  for (const [address, digits] of [
    ['10.9.0.2', '00000000000000000000ffff0a090002'],
    ['::ffff:10.9.0.2', '00000000000000000000ffff0a090002'],
    ['::ffff:a09:2', '00000000000000000000ffff0a090002'],
    ['::', '00000000000000000000000000000000'],
    ['::1', '00000000000000000000000000000001'],
    ['2001:DB8:0:0::7', '20010db8000000000000000000000007'],
    ['fe80::1%lo', 'fe800000000000000000000000000001'],
    ['1:2:3:4:5:6:7:8', '00010002000300040005000600070008'],
  ] as const) {
    assert.equal(addressDigits(address), digits, address)
  }
  for (const wrong of ['', 'localhost', '1.2.3', '::g'])
    assert.throws(() => addressDigits(wrong), /expected an IP address/)
})

for (const { name, listen, dial } of [
  { name: 'IPv4', listen: '127.0.0.1', dial: '127.0.0.1' },
  { name: 'IPv6', listen: '::1', dial: '::1' },
  { name: 'an IPv4 connection of an IPv6 listener', listen: '::', dial: '127.0.0.1' },
  { name: 'an IPv6 socket that connects to a mapped address', listen: '127.0.0.1', dial: '::ffff:127.0.0.1' },
]) {
  test(`the owner of a real socket: ${name}`, async () => {
    const server = createServer()
    server.listen(0, listen)
    await once(server, 'listening')
    const { port } = server.address() as AddressInfo
    const accepting = once(server, 'connection')
    const client = connect(port, dial)
    await once(client, 'connect')
    const [accepted] = (await accepting) as [Socket]
    try {
      const seenByClient = {
        localAddress: accepted.remoteAddress!,
        localPort: accepted.remotePort!,
        remoteAddress: accepted.localAddress!,
        remotePort: port,
      }
      assert.equal(await socketOwner(seenByClient), process.getuid?.())
      assert.equal(await socketOwner({ ...seenByClient, remotePort: port === 1 ? 2 : 1 }), undefined)
      const ports = await listeningPorts(process.pid)
      assert.ok(
        ports.some((end) => end.port === port && end.address === listen),
        JSON.stringify(ports),
      )
      assert.ok(!ports.some((end) => end.port === accepted.remotePort))
    } finally {
      client.destroy()
      accepted.destroy()
      server.close()
    }
  })
}

test('a table of a hundred thousand sockets does not hold up the event loop', {
  timeout: 60_000,
}, async () => {
  const directory = await mkdtemp(join(tmpdir(), 'swam-procnet-'))
  try {
    await mkdir(join(directory, 'net'))
    const port = (index: number): string => (index % 65536).toString(16).toUpperCase().padStart(4, '0')
    const row = (index: number, uid: number): string =>
      `${index}: 0100007F:${port(index)} 0200090A:C001 01 00000000:00000000 00:00000000 00000000 ${uid} 0 ${index + 1} 1 0 20 4 30 10 -1`
    const rows = Array.from({ length: 100_000 }, (_, index) =>
      row(index + 1000, index === 99_000 ? 64055 : 1000),
    )
    await writeFile(join(directory, 'net/tcp'), `${HEAD}${rows.join('\n')}\n`)
    await writeFile(join(directory, 'net/tcp6'), HEAD)
    const name = {
      localAddress: '127.0.0.1',
      localPort: (99_000 + 1000) % 65536,
      remoteAddress: '10.9.0.2',
      remotePort: 0xc001,
    }
    const busyMs = await leastBusyMs(async (begin) => {
      begin()
      assert.notEqual(await socketOwner(name, directory), undefined)
      assert.equal(await socketOwner({ ...name, remotePort: 1 }, directory), undefined)
    })
    assert.ok(busyMs <= BUSY_MS_MAX, `a turn of ${busyMs} ms`)
  } finally {
    await rm(directory, { recursive: true })
  }
})

test('a table beyond all bounds is refused', async () => {
  const directory = await mkdtemp(join(tmpdir(), 'swam-procnet-'))
  try {
    await mkdir(join(directory, 'net'))
    await writeFile(join(directory, 'net/tcp'), HEAD)
    await truncate(join(directory, 'net/tcp'), PROC_NET_BYTES_MAX + 1)
    const name = { localAddress: '127.0.0.1', localPort: 1, remoteAddress: '10.9.0.2', remotePort: 2 }
    await assert.rejects(socketOwner(name, directory), RefusedError)
    await truncate(join(directory, 'net/tcp'), MIB)
    assert.equal(await socketOwner(name, directory), undefined)
  } finally {
    await rm(directory, { recursive: true })
  }
})
