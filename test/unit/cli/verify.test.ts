/** `swam verify` as it is typed, at a daemon's socket: words, exit codes, JSON. */
import assert from 'node:assert/strict'
import { mkdtemp, open, rm, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { Readable } from 'node:stream'
import { after, before, test } from 'node:test'
import { CONTROL_REQUEST_BYTES_MAX } from '../../../lib/core/limits.ts'
import { MIB } from '../../../lib/core/units.ts'
import { ProofFolder } from '../../../lib/proof/proof-folder.ts'
import { runSwam } from '../../../server/cli/program.ts'
import { type ControlServer, serveControl } from '../../../server/control.ts'
import { Params } from '../../../server/params.ts'
import { recordsOf } from '../../../server/verify/records.ts'
import type { VerifyReport } from '../../../server/verify/verify.ts'
import { noise } from '../engine/rig.ts'
import { keepRecord, UUID } from '../verify/record.ts'

const SIZE = MIB

let directory = ''
let server: ControlServer
let state: string | undefined
before(async () => {
  directory = await mkdtemp(join(tmpdir(), 'swam-verify-cli-'))
  const folder = new ProofFolder({ path: join(directory, 'proof') })
  const bytes = noise(SIZE, 4)
  const image = join(directory, 'vm.img')
  await writeFile(image, bytes)
  await keepRecord(folder, bytes, image)
  server = await serveControl({
    path: join(directory, 'hook.sock'),
    mode: 0o600,
    handlers: {
      proofRecords: (params) =>
        recordsOf(new Params('proofRecords', params).text('guest', 255), {
          folder,
          libvirt: { state: async () => state },
          images: [],
        }),
    },
    requestBytesMax: CONTROL_REQUEST_BYTES_MAX,
  })
})
after(async () => {
  await server.close()
  await rm(directory, { recursive: true })
})

async function swam(...words: string[]): Promise<{ code: number; out: string; err: string }> {
  let [out, err] = ['', '']
  const output = {
    out: (text: string) => {
      out += text
    },
    err: (text: string) => {
      err += text
    },
  }
  const code = await runSwam(
    ['--socket', join(directory, 'control.sock'), 'verify', ...words],
    Readable.from([]),
    output,
  )
  return { code, out, err }
}

test('equal is 0, by name and by uuid, in words and in JSON', async () => {
  const { code, out } = await swam('vm')
  assert.equal(code, 0)
  assert.match(
    out,
    /^vda: .*vm\.img; vm came from fra1 at .*, root (cd){32}\n {2}equal: 16 pieces of 64 KiB\n/,
  )
  const json = await swam(UUID, '--json')
  assert.equal(json.code, 0)
  const report = JSON.parse(json.out) as VerifyReport
  assert.equal(report.version, 1)
  assert.equal(report.equal, true)
  assert.deepEqual(Object.keys(report.disks[0]!).sort(), [
    'at',
    'differences',
    'differentLeaves',
    'direction',
    'equalLeaves',
    'format',
    'image',
    'leaves',
    'modifiedAt',
    'peer',
    'root',
    'size',
    'target',
    'unknownLeaves',
  ])
})

test('a guest at work is 7, one that nobody proved 5, wrong words 2, no daemon 3', async () => {
  state = 'paused'
  const busy = await swam('vm')
  assert.equal(busy.code, 7)
  assert.match(busy.err, /^swam: vm is paused at this host: .*\n$/)
  state = undefined
  const unknown = await swam('other')
  assert.equal(unknown.code, 5)
  assert.match(unknown.err, /no proof of a guest other at this host/)
  assert.equal((await swam('vm', '--image', 'nothing')).code, 2)
  assert.equal((await swam('a/b')).code, 2)
  assert.equal((await swam()).code, 2)
  assert.equal((await swam('vm', '--image', `vda=${join(directory, 'none.img')}`)).code, 5)
  const elsewhere = ['--socket', join(directory, 'none', 'control.sock'), 'verify', 'vm']
  const silent = { out: () => undefined, err: () => undefined }
  assert.equal(await runSwam(elsewhere, Readable.from([]), silent), 3)
})

test('a disk that differs is 8, and the text says where', async () => {
  const file = await open(join(directory, 'vm.img'), 'r+')
  await file.write(Buffer.from([1, 2, 3]), 0, 3, 5 * 65_536 + 9)
  await file.close()
  const { code, out } = await swam('vm')
  assert.equal(code, 8)
  assert.match(out, /DIFFERS: 1 of 16 pieces of 64 KiB; at 327680\n/)
})
