/** The login's authorized_keys is replaced only as long as it is what was read: what others wrote meanwhile stays. */
import assert from 'node:assert/strict'
import { mkdtemp, readdir, readFile, rm, stat, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { test } from 'node:test'
import { readAuthorizedKeys, replaceAuthorizedKeys } from '../../../server/join/this-host.ts'

test('authorized_keys: replaced if nobody changed it, left alone otherwise', async () => {
  const home = await mkdtemp(join(tmpdir(), 'swam-home-'))
  try {
    const owner = { uid: process.getuid!(), gid: process.getgid!(), home, shell: '/bin/sh' }
    const file = join(home, '.ssh/authorized_keys')
    assert.equal(await readAuthorizedKeys(owner), '')
    await replaceAuthorizedKeys(owner, '', 'one\n')
    assert.equal(await readAuthorizedKeys(owner), 'one\n')
    assert.equal((await stat(file)).mode & 0o777, 0o600)

    await writeFile(file, 'one\nanother\n')
    await assert.rejects(
      replaceAuthorizedKeys(owner, 'one\n', 'two\n'),
      /authorized_keys was changed by somebody else/,
    )
    assert.equal(await readFile(file, 'utf8'), 'one\nanother\n')
    await replaceAuthorizedKeys(owner, 'one\nanother\n', 'another\n')
    assert.equal(await readFile(file, 'utf8'), 'another\n')

    // A comment that was written before UTF-8 stays as it is.
    const old = Buffer.from('ssh-rsa AAAA M\xfcller \xff\n', 'latin1')
    await writeFile(file, old)
    const text = await readAuthorizedKeys(owner)
    await replaceAuthorizedKeys(owner, text, `${text}mine\n`)
    assert.deepEqual(await readFile(file), Buffer.concat([old, Buffer.from('mine\n')]))
    assert.deepEqual(await readdir(join(home, '.ssh')), ['authorized_keys'], 'nothing else is left')
  } finally {
    await rm(home, { recursive: true, force: true })
  }
})
