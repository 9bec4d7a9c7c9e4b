/** The whole engine from seeds (seeds.ts); ten thousand others in test/long. */
import { test } from 'node:test'
import { runSeed } from './seeds.ts'

const SEEDS = 200

test(`property: ${SEEDS} seeds of a guest, a link and a far host`, { timeout: 300_000 }, async () => {
  for (let seed = 1; seed <= SEEDS; seed++) await runSeed(seed)
})
