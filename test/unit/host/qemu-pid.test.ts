/** Which guests run here, by the pid files that libvirt leaves and by the command lines of real processes. */
import assert from 'node:assert/strict'
import { spawn } from 'node:child_process'
import { once } from 'node:events'
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { test } from 'node:test'
import { RefusedError } from '../../../lib/core/errors.ts'
import { COMMAND_LINE_BYTES_MAX } from '../../../lib/core/limits.ts'
import { MIB } from '../../../lib/core/units.ts'
import { qemuPid, runningUuids } from '../../../lib/host/qemu-pid.ts'

const UUID = '33333333-3333-4333-8333-333333333333'
const OTHER = '44444444-4444-4444-8444-444444444444'

test('guests whose pid file names a process with their uuid run here, and no others', async (context) => {
  const directory = mkdtempSync(join(tmpdir(), 'swam-pids-'))
  const child = spawn('sh', ['-c', 'echo up; read line', 'qemu', '-name', 'vm', '-uuid', UUID], {
    stdio: ['pipe', 'pipe', 'ignore'],
  })
  context.after(async () => {
    child.stdin.end('\n')
    await once(child, 'close')
    rmSync(directory, { recursive: true })
  })
  await once(child.stdout, 'data')
  assert.deepEqual([...(await runningUuids(join(directory, 'none')))], [])
  writeFileSync(join(directory, 'vm.pid'), `${child.pid}\n`)
  writeFileSync(join(directory, 'this.pid'), `${process.pid}`)
  writeFileSync(join(directory, 'gone.pid'), '4194304')
  writeFileSync(join(directory, 'text.pid'), '$(reboot)')
  writeFileSync(join(directory, 'vm.xml'), '')
  assert.deepEqual([...(await runningUuids(directory))], [UUID])
  assert.equal(await qemuPid('vm', UUID, directory), child.pid)
  await assert.rejects(qemuPid('vm', OTHER, directory), RefusedError)
  await assert.rejects(qemuPid('none', UUID, directory), RefusedError)
})

test('a command line is searched for the uuid up to a bound', async (context) => {
  const directory = mkdtempSync(join(tmpdir(), 'swam-pids-'))
  context.after(() => rmSync(directory, { recursive: true }))
  for (const [bytes, found] of [
    [MIB, true],
    [COMMAND_LINE_BYTES_MAX, false],
  ] as const) {
    // The kernel takes a quarter of the stack for one: more than Node may give.
    const script = `ulimit -s 65536
word=$(head -c 65535 /dev/zero | tr '\\0' x)
set --
while [ $# -lt ${bytes / 65_536} ]; do set -- "$@" "$word"; done
exec sh -c 'echo up; read line' qemu "$@" -uuid ${UUID}`
    const child = spawn('sh', ['-c', script], { stdio: ['pipe', 'pipe', 'inherit'] })
    try {
      await once(child.stdout, 'data')
      writeFileSync(join(directory, 'vm.pid'), `${child.pid}\n`)
      assert.deepEqual([...(await runningUuids(directory))], found ? [UUID] : [])
      if (found) assert.equal(await qemuPid('vm', UUID, directory), child.pid)
      else await assert.rejects(qemuPid('vm', UUID, directory), /is not the QEMU of/)
    } finally {
      child.stdin.end('\n')
      await once(child, 'close')
    }
  }
})
