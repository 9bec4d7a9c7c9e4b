/** Without swamd, one guest there and back; test/long has the targets that cannot be created, too. */
import { test } from 'node:test'
import { absentRows } from './swam-absent.ts'

test('without swamd at one side or both', { timeout: 600_000 }, (t) => absentRows(t, true))
