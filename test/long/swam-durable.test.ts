/** Twenty migrations, there and back. swam-kill and the variants hold single ones to it in make test. */
import { test } from 'node:test'
import { migrations } from '../e2e/swam-durable.ts'

test('what is durable is there after each of 20 migrations', { timeout: 1_200_000 }, (t) => migrations(t, 20))
