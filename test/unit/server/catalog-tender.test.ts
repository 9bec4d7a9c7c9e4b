/** When the catalog is kept in the background: not while a host boots, one round at a time, with a rest between two, and not for ever. */
import assert from 'node:assert/strict'
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { test } from 'node:test'
import { ImageStock } from '../../../lib/catalog/stock.ts'
import { ManualClock } from '../../../lib/core/clock.ts'
import { CATALOG_FIRST_TEND_MS, CATALOG_TEND_MS } from '../../../lib/core/limits.ts'
import { createLog } from '../../../lib/core/log.ts'
import { MIB } from '../../../lib/core/units.ts'
import { CatalogTender } from '../../../server/catalog-tender.ts'
import { ImageList } from '../../../server/image-list.ts'

test('a first round some time after the start, each further one so long after the one before', async (context) => {
  const folder = mkdtempSync(join(tmpdir(), 'swam-tender-'))
  writeFileSync(join(folder, 'a.raw'), Buffer.alloc(MIB, 1))
  const log = createLog({ level: 'silent' })
  const stock = new ImageStock({ indexBytesMax: MIB, blockIndexBytesMax: MIB, imagesMax: 4, restMs: 0 })
  context.after(async () => {
    await stock.close()
    rmSync(folder, { recursive: true })
  })
  // A round begins with a question to libvirt, and ends with a scan of what has no map.
  const rounds: PromiseWithResolvers<[]>[] = []
  const formats = (): Promise<[]> => {
    rounds.push(Promise.withResolvers<[]>())
    return rounds.at(-1)!.promise
  }
  const images = new ImageList({ images: [folder], qcow2: [], formats, log })
  const ended: PromiseWithResolvers<void>[] = [Promise.withResolvers(), Promise.withResolvers()]
  let rest = 0
  const { tend } = stock
  stock.tend = async (...how) => {
    await tend.apply(stock, how)
    ended[rest++]!.resolve()
  }
  const clock = new ManualClock()
  const tender = new CatalogTender({ stock, images, scanMiBps: 64, busy: () => new Set(), log, clock })
  const over = async (): Promise<void> => {
    rounds.at(-1)!.resolve([])
    await ended[rounds.length - 1]!.promise
    await new Promise((resolve) => setImmediate(resolve))
  }
  tender.start()
  clock.advance(CATALOG_FIRST_TEND_MS - 1)
  assert.equal(rounds.length, 0)
  clock.advance(1)
  assert.equal(rounds.length, 1)
  clock.advance(2 * CATALOG_TEND_MS)
  assert.equal(rounds.length, 1, 'one that takes long is the only one')
  await over()
  assert.equal(rest, 1)
  clock.advance(CATALOG_TEND_MS - 1)
  assert.equal(rounds.length, 1)
  clock.advance(1)
  assert.equal(rounds.length, 2)
  await over()
  tender.close()
  clock.advance(2 * CATALOG_TEND_MS)
  assert.equal(rounds.length, 2)
})
