/** The redirect, every row. */
import { test } from 'node:test'
import { redirectRows } from '../e2e/swam-redirect.ts'

test('the redirect while a migration is under way: every row', { timeout: 600_000 }, (t) => redirectRows(t))
