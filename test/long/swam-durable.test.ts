/** Twenty migrations, there and back. */
import { test } from 'node:test'
import { migrations } from '../e2e/swam-durable.ts'

test('what is durable is there after each of 20 migrations', { timeout: 1_200_000 }, (t) => migrations(t, 20))
