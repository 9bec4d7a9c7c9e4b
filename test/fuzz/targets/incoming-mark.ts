/** The mark of an incoming guest, which swamd's user writes and root reads, and the names in root's folder of salvage. */
import assert from 'node:assert/strict'
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { basename, join } from 'node:path'
import { parseSalvageName, salvageName } from '../../../lib/catalog/salvage.ts'
import { GUEST_DISKS_MAX, SALVAGE_TARGET_CHARACTERS_MAX } from '../../../lib/core/limits.ts'
import { isUuid } from '../../../lib/host/domain-xml.ts'
import { readMark, writeMark } from '../../../server/incoming-mark.ts'
import type { FuzzTarget } from '../target.ts'

let folder: string | undefined

function place(): string {
  if (folder === undefined) {
    const made = mkdtempSync(join(tmpdir(), 'swam-fuzz-'))
    folder = made
    process.on('exit', () => rmSync(made, { recursive: true, force: true }))
  }
  return folder
}

export const incomingMark: FuzzTarget = {
  name: 'incoming-mark',
  inputBytesMax: 16_384,
  allocationBytesMax: 65_536,
  dictionary: ['{"missing":["', '"id":', 'null', '.raw', '.qcow2', '../'].map((word) => Buffer.from(word)),
  async run(input) {
    const path = join(place(), 'mark')
    writeFileSync(path, input)
    const missing = await readMark(path)
    assert.ok(missing.size <= GUEST_DISKS_MAX)
    for (const each of missing) assert.equal(typeof each, 'string')
    await writeMark(path, 'id', missing)
    assert.deepEqual(await readMark(path), missing, 'what is read can be written and read again')
    // The same bytes as the name of a file, and as that of a disk.
    const text = input.toString('utf8')
    const disk = parseSalvageName(text)
    if (disk !== undefined) assert.equal(salvageName(disk), text)
    const name = salvageName({ uuid: '33333333-3333-4333-8333-333333333333', target: text, format: 'raw' })
    for (const each of [name, disk === undefined ? undefined : text]) {
      if (each === undefined) continue
      assert.equal(basename(each), each, 'it names a file of the folder')
      const parsed = parseSalvageName(each)
      assert.ok(parsed !== undefined && isUuid(parsed.uuid))
      assert.ok(parsed.target.length <= SALVAGE_TARGET_CHARACTERS_MAX && !/[./\0]/.test(parsed.target))
    }
  },
}
