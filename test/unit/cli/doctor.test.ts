/** What a far `swam doctor --json` prints, through an `ssh` that prints without end, nothing, or something else. */
import assert from 'node:assert/strict'
import { chmod, mkdtemp, rm, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { type TestContext, test } from 'node:test'
import { printedBy } from '../../../server/cli/doctor.ts'

async function printed(context: TestContext, script: string, waitMs?: number): Promise<string> {
  const folder = await mkdtemp(join(tmpdir(), 'swam-ssh-'))
  await writeFile(join(folder, 'ssh'), `#!/bin/sh\n${script}\n`)
  await chmod(join(folder, 'ssh'), 0o755)
  const path = process.env['PATH']
  process.env['PATH'] = `${folder}:${path}`
  context.after(() => rm(folder, { recursive: true, force: true }))
  try {
    return await printedBy(['h'], 'root@h', waitMs)
  } finally {
    process.env['PATH'] = path
  }
}

test('a report is what it is, whether something was found or not', async (context) => {
  assert.equal(await printed(context, 'echo report'), 'report\n')
  assert.equal(await printed(context, 'echo report; exit 1'), 'report\n')
})

test('one without end is refused, and one that does not come is not waited for', {
  timeout: 20_000,
}, async (context) => {
  await assert.rejects(
    printed(context, 'exec cat /dev/zero'),
    /^RefusedError: root@h: swam doctor cannot be run there: ssh h: expected at most \d+ bytes of output/,
  )
  await assert.rejects(
    printed(context, 'exec sleep 30', 50),
    /^RefusedError: root@h: swam doctor cannot be run there: ssh h: not done within 50 ms/,
  )
})

test('why there is none is said in one line of bounded length, without control characters', async (context) => {
  const script = 'head -c 1000 /dev/zero | tr "\\0" y >&2; printf "\\033[2J\\302\\233b\\n" >&2; exit 255'
  const error = (await printed(context, script).catch((caught: unknown) => caught)) as Error
  assert.match(error.message, /^root@h: swam doctor cannot be run there: y+ \[2J b$/)
  assert.ok(error.message.length < 600)
})
