/** Without swamd at one side or both, every row. */
import { test } from 'node:test'
import { absentRows } from '../e2e/swam-absent.ts'

test('without swamd at one side or both: every row', { timeout: 600_000 }, (t) => absentRows(t))
