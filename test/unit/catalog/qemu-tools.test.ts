/**
 * QEMU's tools that misbehave, in front of the real ones on PATH: a map without end, an export without a socket, one that says nothing,
 * one that says too much, one whose connection breaks while it lives on. Nobody waits for them for ever, or keeps all they say.
 */
import assert from 'node:assert/strict'
import { once } from 'node:events'
import { mkdir, mkdtemp, open, rm, writeFile } from 'node:fs/promises'
import { createServer, type Socket } from 'node:net'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { type TestContext, test } from 'node:test'
import { MemoryDevice } from '../../../lib/block/memory.ts'
import { dataExtents } from '../../../lib/catalog/data-extents.ts'
import { ImageSource } from '../../../lib/catalog/image-files.ts'
import { Qcow2Export } from '../../../lib/catalog/qcow2-export.ts'
import { RefusedError } from '../../../lib/core/errors.ts'
import { COMMAND_STDERR_BYTES_MAX, IMAGE_MAP_BYTES_MAX } from '../../../lib/core/limits.ts'
import { MIB } from '../../../lib/core/units.ts'
import { serveNbd } from '../../../lib/nbd/server.ts'

/** A folder with an image in it; `script` runs in the place of `tool`, as long as the test does. */
async function rig(context: TestContext, tool: string, script: string) {
  const folder = await mkdtemp(join(tmpdir(), 'swam-tools-'))
  const path = process.env['PATH'] ?? ''
  await mkdir(join(folder, 'bin'))
  await writeFile(join(folder, 'bin', tool), `#!/bin/sh\n${script}\n`, { mode: 0o755 })
  process.env['PATH'] = `${join(folder, 'bin')}:${path}`
  context.after(async () => {
    process.env['PATH'] = path
    await rm(folder, { recursive: true })
  })
  const image = join(folder, 'image')
  await using file = await open(image, 'w')
  await file.truncate(128 * MIB)
  return { folder, image }
}

const map = (spaces: number): string =>
  `head -c ${spaces} /dev/zero | tr '\\0' ' '; echo '[{"start":0,"length":${128 * MIB},"zero":true}]'`

for (const { name, spaces, extents } of [
  { name: 'a map that is short enough', spaces: 1000, extents: [] },
  { name: 'a map without end', spaces: IMAGE_MAP_BYTES_MAX, extents: [{ offset: 0, end: 128 * MIB }] },
]) {
  test(`qemu-img: ${name}`, async (context) => {
    const { image } = await rig(context, 'qemu-img', map(spaces))
    await using file = await open(image, 'r')
    const found = await dataExtents({ fd: file.fd, size: 128 * MIB, allocatedBytes: 0 })
    assert.deepEqual(found, extents)
  })
}

test('qemu-img: a map that does not come', { timeout: 20_000 }, async (context) => {
  const { image } = await rig(context, 'qemu-img', 'exec sleep 60')
  await using file = await open(image, 'r')
  const found = await dataExtents({ fd: file.fd, size: 128 * MIB, allocatedBytes: 0 }, undefined, 100)
  assert.deepEqual(found, [{ offset: 0, end: 128 * MIB }])
})

/** `qemu-nbd` that only hands over a socket of ours, which `serve` has, and goes on until it is killed. */
async function exporter(context: TestContext, serve: (socket: Socket) => void) {
  const script = `for word; do case $word in --socket=*) ln -s "$(dirname "$0")/../ours" "\${word#--socket=}";; esac; done
exec sleep 60`
  const place = await rig(context, 'qemu-nbd', script)
  const sockets: Socket[] = []
  const server = createServer((socket) => {
    sockets.push(socket)
    socket.on('error', () => undefined)
    serve(socket)
  })
  server.listen({ path: join(place.folder, 'ours') })
  await once(server, 'listening')
  context.after(() => {
    server.close()
    for (const socket of sockets) socket.destroy()
  })
  return { ...place, sockets }
}

function exported(image: string, options: { startMs?: number; endMs?: number }): Promise<Qcow2Export> {
  const rules = {
    open: () => ImageSource.open(image),
    backing: () => Promise.reject(new RefusedError('nothing stands below')),
  }
  return Qcow2Export.open({ path: image, format: 'raw' }, rules, { onLost: () => undefined, ...options })
}

test('qemu-nbd: one without a socket is given up', { timeout: 20_000 }, async (context) => {
  const { image } = await rig(context, 'qemu-nbd', 'exec sleep 60')
  await assert.rejects(exported(image, { startMs: 100 }), /image: qemu-nbd has no socket after 100 ms/)
})

test('qemu-nbd: one that says nothing is given up', { timeout: 20_000 }, async (context) => {
  const { image } = await exporter(context, () => undefined)
  await assert.rejects(exported(image, { startMs: 2000 }), /image: .*qemu-nbd does not answer within 2000 ms/)
})

test('qemu-nbd: of what it says without end the first words are kept', async (context) => {
  const flood = `head -c ${20 * COMMAND_STDERR_BYTES_MAX} /dev/zero | tr '\\0' x >&2; exit 1`
  const { image } = await rig(context, 'qemu-nbd', flood)
  await assert.rejects(exported(image, {}), (error: Error) => {
    const said = /not readable as a qcow2: qemu-nbd: (x+)$/.exec(error.message)?.[1]
    assert.equal(said?.length, COMMAND_STDERR_BYTES_MAX)
    return true
  })
})

test('qemu-nbd: one that lives on without its connection is waited for a moment only', {
  timeout: 20_000,
}, async (context) => {
  const { image, sockets } = await exporter(context, (socket) => {
    const exports = { list: async () => [''], open: async () => new MemoryDevice({ size: MIB }) }
    serveNbd(socket, { exports }).catch(() => undefined)
  })
  const source = await exported(image, { endMs: 50 })
  try {
    assert.equal((await source.read(0, 4096)).length, 4096)
    for (const socket of sockets) socket.destroy()
    await assert.rejects(source.read(0, 4096), /image: read 4096 bytes at 0: NBD/)
  } finally {
    await source.close()
  }
})
