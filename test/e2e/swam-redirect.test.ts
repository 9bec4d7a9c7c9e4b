/** The redirect, the rows that differ most; test/long has all of them. */
import { test } from 'node:test'
import { redirectRows } from './swam-redirect.ts'

test('the redirect while a migration is under way', { timeout: 600_000 }, (t) => redirectRows(t, true))
