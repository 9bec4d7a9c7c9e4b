/** Six migrations of swam-durable.ts; test/long has twenty. */
import { test } from 'node:test'
import { migrations } from './swam-durable.ts'

test('what is durable is there after each of 2 migrations', { timeout: 600_000 }, (t) => migrations(t, 2))
