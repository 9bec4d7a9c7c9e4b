/** The far side through an `ssh` that says nothing, or does not end: each wait has an end. */
import assert from 'node:assert/strict'
import { chmod, mkdtemp, rm, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { type TestContext, test } from 'node:test'
import { FarSide } from '../../../server/join/far-side.ts'

const TARGET = { text: 'root@h', host: 'h', user: 'root', hostName: 'h' }

async function withSsh(context: TestContext, script: string): Promise<void> {
  const folder = await mkdtemp(join(tmpdir(), 'swam-ssh-'))
  await writeFile(join(folder, 'ssh'), `#!/bin/sh\n${script}\n`)
  await chmod(join(folder, 'ssh'), 0o755)
  const path = process.env['PATH']
  process.env['PATH'] = `${folder}:${path}`
  context.after(async () => {
    process.env['PATH'] = path
    await rm(folder, { recursive: true, force: true })
  })
}

test('the first answer has time for a password, the next ones have less, and both have an end', async (context) => {
  await withSsh(context, `read line; sleep 0.3; echo '{"version":1,"ok":true}'; exec sleep 30`)
  await using far = new FarSide(TARGET, undefined, [], { loginMs: 10_000, answerMs: 50, closeMs: 50 })
  assert.equal((await far.ask({}))['ok'], true)
  await assert.rejects(far.ask({}), /root@h: no answer within 50 ms/)
  await using other = new FarSide(TARGET, undefined, [], { loginMs: 20, answerMs: 50, closeMs: 50 })
  await assert.rejects(other.ask({}), /no answer within 20 ms/)
})

test('a far command that does not end with its input is ended', { timeout: 10_000 }, async (context) => {
  await withSsh(context, 'exec sleep 30')
  const far = new FarSide(TARGET, undefined, [], { loginMs: 20, answerMs: 20, closeMs: 50 })
  await far.close()
  await far.close()
})

test('what is said without end on standard error is not kept', async (context) => {
  await withSsh(
    context,
    'head -c 3000000 /dev/zero | tr "\\0" y >&2; printf "sudo: a password is required\\n" >&2; exit 1',
  )
  await using far = new FarSide({ ...TARGET, user: 'admin' }, undefined, [])
  const error = (await far.ask({}).catch((caught: unknown) => caught)) as Error
  // The pieces of a pipe are 64 KiB.
  assert.ok(error.message.length < 1000)
  assert.doesNotMatch(error.message, /sudo: a password/, 'what came after the bound')
})
