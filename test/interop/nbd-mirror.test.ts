/**
 * QEMU's own blockdev-mirror, the client that SWAM exists for, into our server: the same steps as libvirt takes (mirror
 * until READY, then cancel), without a guest. Checks that the copy is equal and that FLUSH was asked and answered.
 */
import assert from 'node:assert/strict'
import { type ChildProcessWithoutNullStreams, spawn } from 'node:child_process'
import { randomBytes } from 'node:crypto'
import { once } from 'node:events'
import { writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import { createInterface } from 'node:readline'
import { describe, test } from 'node:test'
import { FaultyDevice } from '../../lib/block/faulty.ts'
import { MemoryDevice } from '../../lib/block/memory.ts'
import { serving } from './nbd-peers.ts'

const MIB = 1024 * 1024
const SIZE = 64 * MIB

type Message = Record<string, unknown>

/** A QMP connection over a child's standard streams: commands are answered in order, events come between. */
class Qmp {
  readonly #child: ChildProcessWithoutNullStreams
  readonly #lines: AsyncIterator<string>
  readonly #events: Message[] = []

  constructor(child: ChildProcessWithoutNullStreams) {
    this.#child = child
    this.#lines = createInterface({ input: child.stdout })[Symbol.asyncIterator]()
  }

  async next(): Promise<Message> {
    const line = await this.#lines.next()
    if (line.done === true) throw new Error('QEMU closed the monitor')
    return JSON.parse(line.value) as Message
  }

  async command(execute: string, args: Message = {}): Promise<Message> {
    this.#child.stdin.write(`${JSON.stringify({ execute, arguments: args })}\n`)
    for (;;) {
      const message = await this.next()
      if ('event' in message) this.#events.push(message)
      else if ('error' in message) throw new Error(`${execute}: ${JSON.stringify(message['error'])}`)
      else return message
    }
  }

  async event(...names: readonly string[]): Promise<Message> {
    for (;;) {
      const message = this.#events.shift() ?? (await this.next())
      if (names.includes(String(message['event']))) return message
    }
  }
}

async function withQemu(work: (qmp: Qmp) => Promise<void>): Promise<void> {
  const args = ['-machine', 'none', '-nodefaults', '-display', 'none', '-S', '-qmp', 'stdio']
  const child = spawn('/usr/bin/qemu-system-x86_64', args)
  child.stderr.resume()
  const gone = once(child, 'exit')
  try {
    const qmp = new Qmp(child)
    await qmp.next()
    await qmp.command('qmp_capabilities')
    await work(qmp)
    await qmp.command('quit')
    await gone
  } finally {
    if (child.exitCode === null && child.signalCode === null) child.kill('SIGKILL')
  }
}

const file = (name: string, path: string): Message => ({
  'node-name': name,
  driver: 'raw',
  file: { driver: 'file', filename: path },
})
const overNbd = (name: string, path: string): Message => ({
  'node-name': name,
  driver: 'raw',
  file: { driver: 'nbd', export: 'disk', server: { type: 'unix', path } },
})

describe('blockdev-mirror of QEMU', () => {
  for (const detectZeroes of ['off', 'unmap']) {
    test(`copies a disk, detect-zeroes=${detectZeroes}`, () => {
      const device = new MemoryDevice({ size: SIZE })
      return serving(device, async (served) => {
        const image = Buffer.alloc(SIZE)
        randomBytes(20 * MIB).copy(image, 3 * MIB)
        randomBytes(MIB).copy(image, SIZE - MIB)
        const source = join(served.folder, 'source.img')
        await writeFile(source, image)
        await withQemu(async (qmp) => {
          await qmp.command('blockdev-add', file('source', source))
          const target = {
            ...overNbd('target', served.socket),
            discard: 'unmap',
            'detect-zeroes': detectZeroes,
          }
          await qmp.command('blockdev-add', target)
          const job = { 'job-id': 'mirror', device: 'source', target: 'target', sync: 'full' }
          await qmp.command('blockdev-mirror', { ...job, 'filter-node-name': 'mirror-top' })
          await qmp.event('BLOCK_JOB_READY')
          await qmp.command('block-job-cancel', { device: 'mirror' })
          const done = (await qmp.event('BLOCK_JOB_COMPLETED', 'BLOCK_JOB_CANCELLED')) as Message
          assert.equal((done['data'] as Message)['error'], undefined)
          await qmp.command('blockdev-del', { 'node-name': 'target' })
        })
        assert.ok((await device.read(0, SIZE)).equals(image))
        assert.ok(device.flushes > 0, 'the mirror flushed')
        assert.deepEqual(
          served.ends.filter((end) => end !== undefined),
          [],
        )
      })
    })
  }

  test('a write that fails fails the job, with the reason', () => {
    const inner = new MemoryDevice({ size: SIZE })
    return serving(new FaultyDevice(inner, [{ operation: 'write', nth: 5, errno: 28 }]), async (served) => {
      const source = join(served.folder, 'source.img')
      await writeFile(source, randomBytes(SIZE))
      await withQemu(async (qmp) => {
        await qmp.command('blockdev-add', file('source', source))
        await qmp.command('blockdev-add', overNbd('target', served.socket))
        const job = { 'job-id': 'mirror', device: 'source', target: 'target', sync: 'full' }
        await qmp.command('blockdev-mirror', job)
        const done = await qmp.event('BLOCK_JOB_COMPLETED', 'BLOCK_JOB_READY')
        assert.equal(done['event'], 'BLOCK_JOB_COMPLETED')
        assert.match(String((done['data'] as Message)['error']), /No space left on device/)
      })
    })
  })
})
