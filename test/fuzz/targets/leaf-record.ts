/** Records of proofs as they lie in the state directory: any bytes, and a head with a digest that fits whatever it says. */
import assert from 'node:assert/strict'
import { hash } from 'node:crypto'
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { RefusedError } from '../../../lib/core/errors.ts'
import { PROOF_HEAD_BYTES, PROOF_RUNS_MAX } from '../../../lib/core/limits.ts'
import { LeafRecord, PAGE_BYTES, PAGE_LEAVES } from '../../../lib/proof/leaf-file.ts'
import type { FuzzTarget } from '../target.ts'

const SHA256_BYTES = 32
const PREFIX_BYTES = 16

let folder: string | undefined

function place(): string {
  if (folder === undefined) {
    const made = mkdtempSync(join(tmpdir(), 'swam-fuzz-leaves-'))
    process.once('exit', () => rmSync(made, { recursive: true, force: true }))
    folder = made
  }
  return join(folder, 'record')
}

/** Two bytes: how long the JSON of the head is; the JSON; what follows the head. */
export function recordOf(input: Buffer): Buffer {
  const length = Math.min(input.length < 2 ? 0 : input.readUInt16BE(0), PROOF_HEAD_BYTES - 100)
  const json = input.subarray(2, 2 + length)
  const head = Buffer.alloc(PROOF_HEAD_BYTES)
  head.write('SWAMLEAF', 'latin1')
  head.writeUInt32BE(1, 8)
  head.writeUInt32BE(json.length, 12)
  json.copy(head, PREFIX_BYTES)
  Buffer.from(hash('sha256', head.subarray(0, -SHA256_BYTES), 'hex'), 'hex').copy(
    head,
    head.length - SHA256_BYTES,
  )
  return Buffer.concat([head, input.subarray(2 + length)])
}

export const leafRecord: FuzzTarget = {
  name: 'leaf-record',
  inputBytesMax: 8192,
  allocationBytesMax: 512 * 1024,
  dictionary: [
    '"size":',
    '"runs":',
    '"runsDigest":',
    '"fileRoot":',
    '"direction":"in"',
    'null',
    'SWAMLEAF',
  ].map((text) => Buffer.from(text, 'latin1')),
  async run(input) {
    const path = place()
    for (const bytes of [input, recordOf(input)]) {
      writeFileSync(path, bytes)
      let record: LeafRecord
      try {
        record = await LeafRecord.open(path)
      } catch (error) {
        assert.ok(error instanceof RefusedError, String(error))
        continue
      }
      try {
        const { leaves, unknown } = record
        assert.ok(PROOF_HEAD_BYTES + leaves * SHA256_BYTES + unknown.count * 8 <= bytes.length)
        assert.ok(unknown.count <= PROOF_RUNS_MAX && unknown.leaves <= leaves)
        for (let first = 0; first < leaves; first += PAGE_LEAVES)
          assert.equal((await record.readPage(first / PAGE_LEAVES)).length, PAGE_BYTES)
      } finally {
        await record.close()
      }
    }
  },
}
