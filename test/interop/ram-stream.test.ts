/** A real QEMU's migration stream, in pieces as a socket gives it: what is seen of its memory is what QEMU says itself. */
import assert from 'node:assert/strict'
import { spawn } from 'node:child_process'
import { mkdtemp, readFile, rm } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { createInterface } from 'node:readline'
import { test } from 'node:test'
import { KIB, MIB } from '../../lib/core/units.ts'
import { RamProgress } from '../../lib/ram/progress.ts'

interface RamStatus {
  readonly total: number
  readonly 'precopy-bytes': number
  /** Of a guest that stands still. */
  readonly 'downtime-bytes': number
}

/** Migrates a machine that stands still into a file. */
async function migrateTo(path: string): Promise<RamStatus> {
  const machine = [
    '-machine',
    'pc',
    '-accel',
    'tcg',
    '-m',
    '96',
    '-S',
    '-nodefaults',
    '-vga',
    'std',
    '-display',
    'none',
  ]
  const qemu = spawn('qemu-system-x86_64', [...machine, '-qmp', 'stdio'], {
    stdio: ['pipe', 'pipe', 'inherit'],
  })
  try {
    const lines = createInterface({ input: qemu.stdout })[Symbol.asyncIterator]()
    const ask = async (execute: string, args: object = {}): Promise<unknown> => {
      qemu.stdin.write(`${JSON.stringify({ execute, arguments: args })}\n`)
      for (;;) {
        const { value, done } = await lines.next()
        assert.ok(done !== true, `QEMU ended at ${execute}`)
        const answer = JSON.parse(value as string) as { return?: unknown; error?: { desc: string } }
        assert.equal(answer.error, undefined, `${execute}: ${answer.error?.desc}`)
        if ('return' in answer) return answer.return
      }
    }
    await ask('qmp_capabilities')
    await ask('migrate', { uri: `exec:cat > '${path}'` })
    for (;;) {
      const { status, ram } = (await ask('query-migrate')) as { status: string; ram: RamStatus }
      assert.ok(status !== 'failed', 'the migration failed')
      if (status === 'completed') return ram
      await new Promise((resolve) => setTimeout(resolve, 50))
    }
  } finally {
    qemu.kill('SIGKILL')
  }
}

test("the memory of a real QEMU's stream", async () => {
  const folder = await mkdtemp(join(tmpdir(), 'swam-ram-stream-'))
  try {
    const status = await migrateTo(join(folder, 'stream'))
    const bytes = await readFile(join(folder, 'stream'))
    const progress = new RamProgress()
    let known = 0
    let highest = 0
    for (let at = 0; at < bytes.length; at += KIB) {
      progress.push(bytes.subarray(at, at + KIB))
      if (!progress.known) continue
      known++
      assert.ok(progress.at >= highest, 'one pass, in order')
      highest = progress.at
    }
    assert.deepEqual([progress.totalBytes, progress.pass], [status.total, 1])
    assert.ok(highest > 96 * MIB && highest < status.total)
    // Behind the list every byte but some marks is a page.
    const passed = status['precopy-bytes'] + status['downtime-bytes'] - progress.passedBytes
    assert.ok(passed >= 0 && passed < 100, `${passed} bytes of what QEMU sent were no pages`)
    assert.ok(known * KIB > 0.9 * progress.passedBytes)
    assert.equal(progress.known, false, 'after its END nothing is held up')
  } finally {
    await rm(folder, { recursive: true, force: true })
  }
})
