/** The whole engine from ten thousand seeds (test/unit/engine/seeds.ts), others than those of `make test`. */
import { test } from 'node:test'
import { runSeed } from '../unit/engine/seeds.ts'

const FIRST = 1001
const SEEDS = 10_000

test(`property: ${SEEDS} seeds of a guest, a link and a far host`, { timeout: 3 * 3_600_000 }, async () => {
  for (let seed = FIRST; seed < FIRST + SEEDS; seed++) await runSeed(seed)
})
