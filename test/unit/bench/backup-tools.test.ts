/**
 * Growth of stores, with a tool of a few lines that keeps each letter of a text once: which store grows when, what is copied,
 * what a figure says of a tool that gives back something else. The programs themselves are the bench's to run.
 */
import assert from 'node:assert/strict'
import { createHash } from 'node:crypto'
import { mkdtemp, readFile, rm, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { test } from 'node:test'
import { BackupStores, type BackupTool } from '../../bench/backup-tools.ts'
import { requirePrograms, runProgram, sha256OfOutput } from '../../bench/program.ts'

function sha256(text: string): string {
  return createHash('sha256').update(text).digest('hex')
}

/** `stored` gets the name of every image that is stored. */
function letters(stored: string[], restore = (text: string): string => text): BackupTool {
  const all = async (folder: string): Promise<string> => await readFile(join(folder, 'letters'), 'utf8')
  return {
    name: 'borg',
    init: async (folder) => await writeFile(join(folder, 'letters'), ''),
    store: async (folder, { name, path }) => {
      stored.push(name)
      const text = await readFile(path, 'utf8')
      const known = new Set((await all(folder)) + text)
      await writeFile(join(folder, 'letters'), [...known].join(''))
    },
    storedBytes: async (folder) => (await all(folder)).length,
    restoredSha256: async (_, { path }) => sha256(restore(await readFile(path, 'utf8'))),
  }
}

async function withImages(
  work: (image: (name: string) => { name: string; path: string }, folder: string) => Promise<void>,
): Promise<void> {
  const folder = await mkdtemp(join(tmpdir(), 'swam-stores-'))
  const image = (name: string): { name: string; path: string } => ({
    name,
    path: join(folder, `${name}.txt`),
  })
  try {
    for (const [name, text] of Object.entries({ base: 'abc', web: 'abcde', db: 'abexyz' }))
      await writeFile(image(name).path, text)
    await work(image, folder)
  } finally {
    await rm(folder, { recursive: true })
  }
}

test('a figure is what the last image adds; lists of images that begin alike share their stores', async () => {
  await withImages(async (image, folder) => {
    const stored: string[] = []
    const stores = new BackupStores(letters(stored), folder)
    const bytes = async (have: readonly string[], target: string): Promise<number> =>
      (await stores.measure(have.map(image), image(target))).bytes
    assert.equal(await bytes(['base'], 'web'), 2)
    assert.equal(await bytes(['base', 'web'], 'db'), 3)
    assert.equal(await bytes([], 'web'), 5)
    assert.equal(await bytes(['base'], 'db'), 4)
    assert.deepEqual(stored, ['base', 'web', 'db', 'web', 'db'])
  })
})

test('what comes out of a store is told by its digest', async () => {
  await withImages(async (image, folder) => {
    const good = await new BackupStores(letters([]), folder).measure([], image('web'))
    assert.equal(good.sha256, sha256('abcde'))
  })
  await withImages(async (image, folder) => {
    const torn = await new BackupStores(
      letters([], (text) => text.slice(1)),
      folder,
    ).measure([], image('web'))
    assert.equal(torn.sha256, sha256('bcde'))
  })
})

test('programs: output, digest of it, exit codes, and what is missing', async () => {
  assert.equal(await runProgram('printf', ['%s', 'text']), 'text')
  assert.equal(await sha256OfOutput('printf', ['text']), sha256('text'))
  assert.equal(await runProgram('sh', ['-c', 'exit 1'], { exitCodes: [0, 1] }), '')
  const failing = runProgram('sh', ['-c', 'echo why >&2; exit 3'])
  await assert.rejects(failing, /^Error: sh -c .*: expected exit 0, found 3: why$/)
  await assert.rejects(runProgram('no-such-program', []), /cannot start no-such-program/)
  requirePrograms([['sh', 'dash']])
  const missing = [
    ['no-such-program', 'some-package'],
    ['sh', 'dash'],
  ] as const
  assert.throws(() => requirePrograms(missing), /no-such-program: apt-get install some-package$/)
})
