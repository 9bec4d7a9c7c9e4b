/**
 * What a join lays down on this host: files are replaced only as long as they are what was read, with owner and mode as they
 * were, and a key that is there is never made anew. What belongs to the login is touched with that user's rights.
 */
import assert from 'node:assert/strict'
import { spawnSync } from 'node:child_process'
import {
  chmod,
  chown,
  lstat,
  mkdir,
  mkdtemp,
  readdir,
  readFile,
  rm,
  stat,
  symlink,
  writeFile,
} from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { test } from 'node:test'
import {
  login,
  makeKey,
  publicKeyAt,
  readAuthorizedKeys,
  replaceAuthorizedKeys,
  replaceConfig,
} from '../../../server/join/this-host.ts'

test('authorized_keys: replaced if nobody changed it, left alone otherwise', async () => {
  const home = await mkdtemp(join(tmpdir(), 'swam-home-'))
  try {
    const owner = { uid: process.getuid!(), gid: process.getgid!(), home, shell: '/bin/sh' }
    const file = join(home, '.ssh/authorized_keys')
    assert.equal(await readAuthorizedKeys(owner), '')
    await replaceAuthorizedKeys(owner, '', 'one\n')
    assert.equal(await readAuthorizedKeys(owner), 'one\n')
    assert.equal((await stat(file)).mode & 0o777, 0o600)
    assert.equal((await stat(join(home, '.ssh'))).mode & 0o777, 0o700)

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

/** Root, to become somebody else. */
const NOBODY = { uid: 65_534, gid: 65_534, shell: '/bin/sh' }

test('authorized_keys: read and written with the rights of the login, so that no link there leads root anywhere', async (t) => {
  if (process.getuid?.() !== 0) throw new Error('this row needs root, to become somebody else')
  const folder = await mkdtemp(join(tmpdir(), 'swam-home-'))
  t.after(() => rm(folder, { recursive: true, force: true }))
  await chmod(folder, 0o711)
  const home = join(folder, 'home')
  await mkdir(join(home, '.ssh'), { recursive: true })
  for (const path of [home, join(home, '.ssh')]) await chown(path, NOBODY.uid, NOBODY.gid)
  const owner = { ...NOBODY, home }
  const secret = join(folder, 'secret')
  await writeFile(secret, 'root only\n', { mode: 0o600 })
  const file = join(home, '.ssh/authorized_keys')

  await symlink(secret, file)
  await assert.rejects(readAuthorizedKeys(owner), /Permission denied/)
  await assert.rejects(replaceAuthorizedKeys(owner, '', 'x\n'), /Permission denied/)
  await rm(file)
  await replaceAuthorizedKeys(owner, '', 'x\n')
  assert.equal((await stat(file)).uid, NOBODY.uid)
  // A folder of root's in the place of .ssh.
  await rm(join(home, '.ssh'), { recursive: true })
  await mkdir(join(folder, 'other'), { mode: 0o755 })
  await symlink(join(folder, 'other'), join(home, '.ssh'))
  await assert.rejects(replaceAuthorizedKeys(owner, '', 'x\n'), /Permission denied/)
  assert.deepEqual(await readdir(join(folder, 'other')), [])
  assert.equal(await readFile(secret, 'utf8'), 'root only\n')
})

test('authorized_keys: a file without end is refused', async (t) => {
  const home = await mkdtemp(join(tmpdir(), 'swam-home-'))
  t.after(() => rm(home, { recursive: true, force: true }))
  const owner = { uid: process.getuid!(), gid: process.getgid!(), home, shell: '/bin/sh' }
  await mkdir(join(home, '.ssh'))
  await symlink('/dev/zero', join(home, '.ssh/authorized_keys'))
  await assert.rejects(readAuthorizedKeys(owner), /at most 1048576 bytes/)
})

test('login: a user that is there, with a home that is a path', async () => {
  const entry = { uid: 1, gid: 1, home: '/var/lib/swam', shell: '/bin/sh' }
  assert.deepEqual(await login(async () => entry), entry)
  await assert.rejects(
    login(async () => undefined),
    /no user swam/,
  )
  for (const home of ['', 'x', '-x'])
    await assert.rejects(
      login(async () => ({ ...entry, home })),
      /no user swam/,
    )
})

test('keys: one that is there is never made anew, and a new one has its name when it is right', async (t) => {
  const folder = await mkdtemp(join(tmpdir(), 'swam-key-'))
  t.after(() => rm(folder, { recursive: true, force: true }))
  const path = join(folder, 'id_ed25519')
  assert.equal(await publicKeyAt(path), null)
  for (const make of [
    () => writeFile(path, 'no key\n', { mode: 0o600 }),
    () => symlink('/nowhere', path),
    () => mkdir(path),
    async () => void spawnSync('ssh-keygen', ['-q', '-t', 'ed25519', '-N', 'secret', '-f', path]),
  ]) {
    await make()
    await assert.rejects(publicKeyAt(path), /not a key without a passphrase/)
    await rm(path, { recursive: true })
  }
  await rm(`${path}.pub`, { force: true })
  const owner = process.getuid!() === 0 ? NOBODY : { uid: process.getuid!(), gid: process.getgid!() }
  const key = await makeKey(path, { ...owner, home: folder, shell: '' })
  assert.equal(await publicKeyAt(path), key)
  const found = await lstat(path)
  assert.deepEqual([found.uid, found.gid, found.mode & 0o777], [owner.uid, owner.gid, 0o600])
  assert.deepEqual((await readdir(folder)).sort(), ['id_ed25519', 'id_ed25519.pub'])
  // Where its owner cannot be set it is not left behind.
  const other = join(folder, 'other')
  await assert.rejects(makeKey(other, { uid: -2, gid: -2, home: folder, shell: '' }))
  assert.equal((await readdir(folder)).length, 2)
})

test('config: replaced by what a daemon would take, where it lies, with its owner and mode, if nobody changed it', async (t) => {
  const folder = await mkdtemp(join(tmpdir(), 'swam-config-'))
  t.after(() => rm(folder, { recursive: true, force: true }))
  const file = join(folder, 'real.toml')
  const path = join(folder, 'swam.toml')
  const before = 'site = "a"\n'
  await writeFile(file, before)
  await chmod(file, 0o640)
  if (process.getuid!() === 0) await chown(file, 0, NOBODY.gid)
  await symlink(file, path)
  const state = async (): Promise<unknown[]> => {
    const { uid, gid, mode } = await stat(file)
    return [uid, gid, mode, (await lstat(path)).isSymbolicLink(), (await readdir(folder)).length]
  }
  const was = await state()
  await assert.rejects(
    replaceConfig(path, before, 'site = 7\n'),
    /the new config would be wrong: .*real\.toml:1: site/,
  )
  await assert.rejects(replaceConfig(path, 'site = "b"\n', 'site = "c"\n'), /changed by somebody else/)
  assert.equal(await readFile(file, 'utf8'), before)
  await replaceConfig(path, before, 'site = "b"\n')
  assert.equal(await readFile(file, 'utf8'), 'site = "b"\n')
  assert.deepEqual(await state(), was)
  // A byte order mark is part of the text, and no change by somebody else.
  await writeFile(file, '\ufeffsite = "b"\n')
  await replaceConfig(path, '\ufeffsite = "b"\n', '\ufeffsite = "c"\n')
})
