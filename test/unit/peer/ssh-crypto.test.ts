/**
 * ssh2's native crypto as bin/bootstrap builds it: it is the one that is loaded, and its ciphers have no hook in Node's
 * environment, which ended the whole process when the garbage collector came at the wrong moment (bin/ssh2-crypto.h).
 * A tree whose packages were installed before that needs bin/bootstrap once more.
 */
import assert from 'node:assert/strict'
import { execFileSync } from 'node:child_process'
import { readFileSync } from 'node:fs'
import { createRequire } from 'node:module'
import { test } from 'node:test'
import { sshCrypto } from '../../../lib/peer/ssh.ts'

const ADDON = createRequire(import.meta.url).resolve('ssh2/lib/protocol/crypto/build/Release/sshcrypto.node')

test('the native crypto is loaded, and was built without hooks in the environment', () => {
  assert.equal(sshCrypto(), 'native')
  assert.equal(readFileSync(ADDON).includes('EnvironmentCleanupHook'), false, 'run bin/bootstrap')
})

test('ciphers that nobody holds any more are freed, and a process with living ones ends well', () => {
  const script = `
    const { AESGCMCipher } = require(${JSON.stringify(ADDON)})
    const make = () => new AESGCMCipher('aes-128-gcm', Buffer.alloc(16), Buffer.alloc(12))
    globalThis.living = make()
    const rss = () => { globalThis.gc(); return process.memoryUsage().rss }
    for (let i = 0; i < 20000; i++) make()
    const before = rss()
    for (let round = 0; round < 10; round++) { for (let i = 0; i < 20000; i++) make(); globalThis.gc() }
    console.log(rss() - before)`
  const grown = Number(execFileSync(process.execPath, ['--expose-gc', '-e', script], { encoding: 'utf8' }))
  // A cipher's state is about a KiB: 200,000 that are not freed would be 200 MiB.
  assert.ok(grown < 50 * 1024 * 1024, `${grown} bytes more after 200,000 ciphers`)
})
