/** What systemd hears of its daemon, by the real systemd-notify; the watchdog's own word is in watchdog.test.ts. */
import assert from 'node:assert/strict'
import { mkdtempSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { test } from 'node:test'
import { notifySystemd } from '../../../lib/host/notify.ts'
import { notifySocket } from './notify-socket.ts'

test('READY and STOPPING arrive, each once and in order', async () => {
  const directory = mkdtempSync(join(tmpdir(), 'swam-notify-'))
  try {
    await using socket = await notifySocket(join(directory, 'notify.sock'))
    await notifySystemd(socket.path, 'READY=1')
    assert.deepEqual(socket.messages(), ['READY=1'])
    await notifySystemd(socket.path, 'STOPPING=1')
    assert.deepEqual(socket.messages(), ['READY=1', 'STOPPING=1'])
  } finally {
    rmSync(directory, { recursive: true, force: true })
  }
})

test('a socket that is gone is an error, no socket is none', async () => {
  await assert.rejects(notifySystemd('/nonexistent/notify.sock', 'READY=1'), /systemd-notify/)
  await notifySystemd(undefined, 'READY=1')
  await notifySystemd('', 'READY=1')
})
