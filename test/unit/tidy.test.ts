/**
 * Holds what no compiler holds: the layering table of docs/ARCHITECTURE.md, no import cycles, pure codecs, the form of a
 * file, no paths of one machine and no registries in the tree. The checker is below and takes files as values, so that
 * the first half of the tests can plant each fault and see that it is found.
 * It reads imports by their form at the start of a line, not with a parser: enough for code that biome has formatted.
 */
import assert from 'node:assert/strict'
import { execFileSync } from 'node:child_process'
import { readFileSync } from 'node:fs'
import { dirname, join, posix } from 'node:path'
import { test } from 'node:test'
import { fileURLToPath } from 'node:url'

const ROOT = fileURLToPath(new URL('../..', import.meta.url))
/** biome breaks code at 110; what stays longer is a message or a comment that cannot be broken well. */
const LINE_CHARACTERS_MAX = 140
const FILE_LINES_MAX = 600
/** A list: it is as long as there are limits, and stays one file (I6). */
const LIST = 'lib/core/limits.ts'
/** This file is full of planted faults. */
const SELF = 'test/unit/tidy.test.ts'

interface SourceFile {
  readonly path: string
  readonly text: string
}

interface Tree {
  readonly files: readonly SourceFile[]
  readonly layers: ReadonlyMap<string, readonly string[] | 'all'>
  readonly dependencies: readonly string[]
  readonly devDependencies: readonly string[]
}

interface Import {
  readonly specifier: string
  readonly typeOnly: boolean
}

/** `| lib/block | … | core |` of the table "Who does what"; names in the last column are folders of lib. */
function parseLayers(markdown: string): Map<string, readonly string[] | 'all'> {
  const layers = new Map<string, readonly string[] | 'all'>()
  for (const line of markdown.split('\n')) {
    const cells = line.split('|').map((cell) => cell.trim().replaceAll('`', ''))
    const [, folder, , allowed] = cells
    if (cells.length !== 5 || folder === undefined || allowed === undefined) continue
    if (!/^(lib\/[a-z/]+|config|hooks|server)$/.test(folder)) continue
    if (allowed === 'all of it') layers.set(folder, 'all')
    else if (allowed === 'nothing') layers.set(folder, [])
    else layers.set(folder, allowed.split(/,\s*/).map(folderNamed))
  }
  return layers
}

function folderNamed(name: string): string {
  return ['config', 'hooks', 'server'].includes(name) ? name : `lib/${name}`
}

/** The longest folder of the table that holds the path: lib/nbd/protocol before lib/nbd. */
function layerOf(path: string, layers: Tree['layers']): string | undefined {
  let best: string | undefined
  for (const folder of layers.keys()) {
    if (path.startsWith(`${folder}/`) && folder.length > (best?.length ?? 0)) best = folder
  }
  return best
}

function importsOf(text: string): Import[] {
  const code = text.replaceAll(/^\s*(?:\*|\/\*|\/\/).*$/gm, '')
  const imports: Import[] = []
  const statement = /^(?:import|export)\s+(type\s)?([^'"`;=()]*?)\s*from\s*'([^'\n]+)'/gm
  for (const match of code.matchAll(statement)) {
    const names = (match[2] ?? '').replaceAll(/[{}\s]+/g, ' ').trim()
    const allTypes =
      names !== '' && /\{/.test(match[2] ?? '') && names.split(',').every((n) => /^\s*(type\s|$)/.test(n))
    imports.push({ specifier: match[3]!, typeOnly: match[1] !== undefined || allTypes })
  }
  for (const pattern of [
    /^import\s*'([^'\n]+)'/gm,
    /\bimport\(\s*'([^'\n]+)'/g,
    // A worker's file is an import too.
    /new URL\(\s*'(\.[^'\n]+\.ts)'/g,
  ]) {
    for (const match of code.matchAll(pattern)) imports.push({ specifier: match[1]!, typeOnly: false })
  }
  return imports
}

const PURE = /^(lib\/nbd\/protocol\/|lib\/wire\/|hooks\/decision\.ts|lib\/host\/(xml|domain-xml)\.ts)/
const IMPURE_MODULE =
  /^node:(net|tls|child_process|fs|fs\/promises|http|https|dgram|worker_threads|timers|timers\/promises|os)$|^(pino|ssh2)$/
const IMPURE_CALL = /\b(setTimeout|setInterval|setImmediate|fetch)\(|\b(Date|performance)\.now\(|\bprocess\./

function check(tree: Tree): string[] {
  const findings: string[] = []
  const paths = new Set(tree.files.map((file) => file.path))
  const edges = new Map<string, string[]>()
  for (const file of tree.files) {
    checkText(file, findings)
    if (file.path === 'package-lock.json' && /"resolved"\s*:/.test(file.text)) {
      findings.push('package-lock.json: names where packages were fetched ("resolved")')
    }
    if (!file.path.endsWith('.ts') || file.path.startsWith('lib/chunk/assembly/')) continue
    checkForm(file, findings)
    if (file.path === SELF) continue
    for (const item of importsOf(file.text)) {
      const target = checkImport(file.path, item, tree, paths, findings)
      if (target !== undefined && !item.typeOnly)
        edges.set(file.path, [...(edges.get(file.path) ?? []), target])
    }
  }
  for (const cycle of cyclesOf(edges)) findings.push(`import cycle: ${cycle.join(' -> ')}`)
  return findings
}

/** Gives the file that is imported, when it is one of the tree. */
function checkImport(
  from: string,
  item: Import,
  tree: Tree,
  paths: ReadonlySet<string>,
  findings: string[],
): string | undefined {
  const { specifier } = item
  const isTest = from.startsWith('test/')
  if (PURE.test(from) && IMPURE_MODULE.test(specifier))
    findings.push(`${from}: is pure, but imports ${specifier}`)
  if (specifier.startsWith('node:')) return undefined
  if (!specifier.startsWith('.')) {
    const name = specifier
      .split('/')
      .slice(0, specifier.startsWith('@') ? 2 : 1)
      .join('/')
    const known = isTest ? [...tree.dependencies, ...tree.devDependencies] : tree.dependencies
    if (!known.includes(name))
      findings.push(`${from}: imports ${name}, which is no dependency in package.json`)
    return undefined
  }
  const target = posix.normalize(posix.join(dirname(from), specifier))
  if (!paths.has(target)) {
    findings.push(`${from}: imports ${specifier}, which is no file`)
    return undefined
  }
  if (isTest) return target
  const here = layerOf(from, tree.layers)
  const there = layerOf(target, tree.layers)
  if (here === undefined) findings.push(`${from}: is in no layer of docs/ARCHITECTURE.md`)
  else if (there === undefined) findings.push(`${from}: imports ${target}, which is in no layer`)
  else if (here !== there) {
    const allowed = tree.layers.get(here)
    if (allowed !== 'all' && allowed?.includes(there) !== true)
      findings.push(`${from}: ${here} may not import ${target}`)
  }
  return target
}

function checkForm({ path, text }: SourceFile, findings: string[]): void {
  const lines = text.split('\n')
  if (!/^(\/\*\*|\/\/|#!)/.test(text)) findings.push(`${path}: does not open with a note`)
  if (lines.length > FILE_LINES_MAX + 1 && path !== LIST)
    findings.push(`${path}: ${lines.length - 1} lines, more than ${FILE_LINES_MAX}`)
  if (path === SELF) return
  // Node's test runner takes a reporter by its default export.
  const isReporter = path === 'test/long/reporter.ts'
  if (!isReporter && /^\s*export\s+default\b|\bas\s+default\b/m.test(text))
    findings.push(`${path}: has a default export`)
  if (/\b(TODO|FIXME|XXX)\b(?!\|)/.test(text)) findings.push(`${path}: holds a TODO`)
  if (PURE.test(path) && IMPURE_CALL.test(text.replaceAll(/^\s*(?:\*|\/\/|\/\*).*$/gm, ''))) {
    findings.push(`${path}: is pure, but uses time or the process`)
  }
  if (!path.startsWith('test/')) {
    lines.forEach((line, index) => {
      if (line.length > LINE_CHARACTERS_MAX) findings.push(`${path}:${index + 1}: ${line.length} characters`)
    })
  } else if (/\b(test|it|describe|suite)\.(skip|only|todo)\(|[{,]\s*(skip|only|todo):\s/.test(text)) {
    findings.push(`${path}: skips tests, or runs only some`)
  }
}

/** Put together from halves, so that this file does not find itself. */
const FOREIGN: readonly { readonly what: string; readonly pattern: RegExp }[] = [
  {
    what: 'a path of one machine',
    pattern: new RegExp(`(?<![\\w.$}~-])/(${'wo'}rk|${'ho'}me)/[\\w.]`),
  },
  {
    what: 'a package registry',
    pattern: new RegExp(`${'regis'}try\\.[a-z]|npm${'js'}\\.(org|com)|${'artif'}actory`, 'i'),
  },
]

function checkText({ path, text }: SourceFile, findings: string[]): void {
  for (const { what, pattern } of FOREIGN) {
    const match = pattern.exec(text)
    if (match !== null) {
      const line = text.slice(0, match.index).split('\n').length
      findings.push(`${path}:${line}: names ${what}`)
    }
  }
}

/** Each cycle once, by depth-first search. */
function cyclesOf(edges: ReadonlyMap<string, readonly string[]>): string[][] {
  const cycles: string[][] = []
  const done = new Set<string>()
  const visit = (path: string, stack: readonly string[]): void => {
    const seenAt = stack.indexOf(path)
    if (seenAt >= 0) {
      cycles.push([...stack.slice(seenAt), path])
      return
    }
    if (done.has(path)) return
    for (const next of edges.get(path) ?? []) visit(next, [...stack, path])
    done.add(path)
  }
  for (const path of edges.keys()) visit(path, [])
  return cycles
}

// ---- the checker, on planted faults -------------------------------------------------------------------------------

const TABLE = `
| folder | is | may import |
|---|---|---|
| lib/core | ground | nothing |
| lib/wire | messages | core |
| lib/nbd/protocol | codec | core |
| lib/nbd | server | core, nbd/protocol |
| config | schema | core |
| server | all | all of it |
`
const NOTE = '/** A note. */\n'

function plant(...files: readonly (readonly [path: string, text: string])[]): string[] {
  return check({
    files: files.map(([path, text]) => ({ path, text })),
    layers: parseLayers(TABLE),
    dependencies: ['pino'],
    devDependencies: ['fast-check'],
  })
}

const CORE = ['lib/core/a.ts', `${NOTE}export const a = 1\n`] as const
const CONFIG = ['config/c.ts', `${NOTE}export const c = 1\n`] as const

test('a tidy tree has no findings', () => {
  const found = plant(
    CORE,
    CONFIG,
    ['lib/nbd/protocol/p.ts', `${NOTE}import { a } from '../../core/a.ts'\nexport const p = a\n`],
    ['lib/nbd/s.ts', `${NOTE}import net from 'node:net'\nimport {\n  p,\n} from './protocol/p.ts'\nnet; p\n`],
    ['server/m.ts', `${NOTE}import { pino } from 'pino'\nimport { c } from '../config/c.ts'\npino; c\n`],
    ['test/unit/x.test.ts', `${NOTE}import fc from 'fast-check'\nimport '../../server/m.ts'\nfc\n`],
    ['lib/core/t1.ts', `${NOTE}import type { T } from './t2.ts'\nexport type U = T\n`],
    ['lib/core/t2.ts', `${NOTE}import { type U } from './t1.ts'\nexport type T = 1 | U\n`],
    ['package-lock.json', '{"packages":{"a":{"version":"1"}}}'],
  )
  assert.deepEqual(found, [])
})

const longLine = `${NOTE}export const a = '${'x'.repeat(LINE_CHARACTERS_MAX)}'\n`
const registryHost = `https://${'regis'}try.example.net/`
const planted: readonly {
  readonly name: string
  readonly files: readonly (readonly [string, string])[]
  readonly finding: RegExp
}[] = [
  {
    name: 'an import upward',
    files: [CONFIG, ['lib/core/b.ts', `${NOTE}import { c } from '../../config/c.ts'\n`]],
    finding: /lib\/core may not import config\/c\.ts/,
  },
  {
    name: 'a type imported upward',
    files: [CONFIG, ['lib/core/b.ts', `${NOTE}import type { c } from '../../config/c.ts'\n`]],
    finding: /may not import/,
  },
  {
    name: 'an import over several lines',
    files: [CONFIG, ['lib/core/b.ts', `${NOTE}import {\n  c,\n} from '../../config/c.ts'\n`]],
    finding: /may not import/,
  },
  {
    name: 'a re-export upward',
    files: [CONFIG, ['lib/core/b.ts', `${NOTE}export * from '../../config/c.ts'\n`]],
    finding: /may not import/,
  },
  {
    name: 'a dynamic import upward',
    files: [CONFIG, ['lib/core/b.ts', `${NOTE}const c = await import('../../config/c.ts')\n`]],
    finding: /may not import/,
  },
  {
    name: 'a bare import upward',
    files: [CONFIG, ['lib/core/b.ts', `${NOTE}import '../../config/c.ts'\n`]],
    finding: /may not import/,
  },
  {
    name: 'a worker of an upper layer',
    files: [CONFIG, ['lib/core/b.ts', `${NOTE}new Worker(new URL('../../config/c.ts', import.meta.url))\n`]],
    finding: /may not import/,
  },
  {
    name: 'a sibling layer',
    files: [
      ['lib/nbd/s.ts', NOTE],
      ['lib/wire/w.ts', `${NOTE}import '../nbd/s.ts'\n`],
    ],
    finding: /lib\/wire may not import/,
  },
  {
    name: 'the codec importing its server',
    files: [
      ['lib/nbd/s.ts', NOTE],
      ['lib/nbd/protocol/p.ts', `${NOTE}import '../s.ts'\n`],
    ],
    finding: /lib\/nbd\/protocol may not import/,
  },
  {
    name: 'code importing a test',
    files: [
      ['test/t.ts', NOTE],
      ['server/m.ts', `${NOTE}import '../test/t.ts'\n`],
    ],
    finding: /which is in no layer/,
  },
  {
    name: 'a folder without a layer',
    files: [CORE, ['lib/new/n.ts', `${NOTE}import '../core/a.ts'\n`]],
    finding: /is in no layer of/,
  },
  {
    name: 'a file that is not there',
    files: [['lib/core/b.ts', `${NOTE}import './gone.ts'\n`]],
    finding: /which is no file/,
  },
  {
    name: 'a package that is not declared',
    files: [['lib/core/b.ts', `${NOTE}import x from 'left-pad'\n`]],
    finding: /left-pad, which is no dependency/,
  },
  {
    name: 'a development package in the program',
    files: [['lib/core/b.ts', `${NOTE}import x from 'fast-check'\n`]],
    finding: /fast-check, which is no/,
  },
  {
    name: 'a cycle of two',
    files: [
      ['lib/core/b.ts', `${NOTE}import './d.ts'\n`],
      ['lib/core/d.ts', `${NOTE}import './b.ts'\n`],
    ],
    finding: /import cycle: lib\/core\/b\.ts -> lib\/core\/d\.ts -> lib\/core\/b\.ts/,
  },
  {
    name: 'a cycle of three',
    files: [
      ['lib/core/b.ts', `${NOTE}import './d.ts'\n`],
      ['lib/core/d.ts', `${NOTE}import './e.ts'\n`],
      ['lib/core/e.ts', `${NOTE}export { x } from './b.ts'\n`],
    ],
    finding: /import cycle/,
  },
  {
    name: 'a socket in a codec',
    files: [['lib/wire/w.ts', `${NOTE}import { connect } from 'node:net'\n`]],
    finding: /is pure, but imports node:net/,
  },
  {
    name: 'a process in a codec',
    files: [['lib/nbd/protocol/p.ts', `${NOTE}import { spawn } from 'node:child_process'\n`]],
    finding: /is pure/,
  },
  {
    name: 'a timer in a codec',
    files: [['lib/wire/w.ts', `${NOTE}setTimeout(() => {}, 1)\n`]],
    finding: /is pure, but uses time/,
  },
  {
    name: 'the clock in a codec',
    files: [['lib/wire/w.ts', `${NOTE}const now = Date.now()\n`]],
    finding: /is pure, but uses time/,
  },
  {
    name: 'a default export',
    files: [['lib/core/b.ts', `${NOTE}export default 1\n`]],
    finding: /default export/,
  },
  {
    name: 'a default export by another name',
    files: [['lib/core/b.ts', `${NOTE}export { b as default }\n`]],
    finding: /default export/,
  },
  {
    name: 'no note',
    files: [['lib/core/b.ts', 'export const b = 1\n']],
    finding: /does not open with a note/,
  },
  {
    name: 'a long file',
    files: [['lib/core/b.ts', NOTE + '\n'.repeat(FILE_LINES_MAX)]],
    finding: /601 lines/,
  },
  { name: 'a long line', files: [['lib/core/b.ts', longLine]], finding: /b\.ts:2: 159 characters/ },
  {
    name: 'something left to do',
    files: [['lib/core/b.ts', `${NOTE}// ${'TO'}DO: later\n`]],
    finding: /holds a TODO/,
  },
  {
    name: 'a skipped test',
    files: [['test/x.test.ts', `${NOTE}test.skip('x', () => {})\n`]],
    finding: /skips tests/,
  },
  {
    name: 'a test skipped by option',
    files: [['test/x.test.ts', `${NOTE}test('x', { skip: true }, () => {})\n`]],
    finding: /skips tests/,
  },
  {
    name: 'a path of one machine',
    files: [['docs/x.md', `run /${'ho'}me/me/swam\n`]],
    finding: /docs\/x\.md:1: names a path/,
  },
  {
    name: 'a registry in the lock file',
    files: [['package-lock.json', `\n"${registryHost}"`]],
    finding: /package-lock\.json:2: names a package registry/,
  },
  {
    name: 'resolved in the lock file',
    files: [['package-lock.json', '"resolved": "x"']],
    finding: /package-lock\.json: names where/,
  },
]

for (const { name, files, finding } of planted) {
  test(`found: ${name}`, () => {
    const found = plant(...files)
    assert.ok(
      found.some((text) => finding.test(text)),
      `expected ${finding}, found ${JSON.stringify(found)}`,
    )
  })
}

// ---- the tree itself ----------------------------------------------------------------------------------------------

function readTree(): Tree {
  const listed = execFileSync('git', ['ls-files', '-z', '--cached', '--others', '--exclude-standard'], {
    cwd: ROOT,
    encoding: 'utf8',
    maxBuffer: 64 * 1024 * 1024,
  })
  const files: SourceFile[] = []
  for (const path of new Set(listed.split('\0').filter((entry) => entry !== ''))) {
    let bytes: Buffer
    try {
      bytes = readFileSync(join(ROOT, path))
    } catch (error) {
      // Deleted and not committed yet, or a link to a folder.
      if (['ENOENT', 'EISDIR'].includes((error as NodeJS.ErrnoException).code ?? '')) continue
      throw error
    }
    if (!bytes.subarray(0, 8192).includes(0)) files.push({ path, text: bytes.toString('utf8') })
  }
  const packageJson = JSON.parse(readFileSync(join(ROOT, 'package.json'), 'utf8')) as Record<string, object>
  return {
    files,
    layers: parseLayers(readFileSync(join(ROOT, 'docs/ARCHITECTURE.md'), 'utf8')),
    dependencies: Object.keys(packageJson['dependencies'] ?? {}),
    devDependencies: Object.keys(packageJson['devDependencies'] ?? {}),
  }
}

test('the tree is tidy', () => {
  const tree = readTree()
  assert.ok(tree.layers.size >= 10, 'the layering table of docs/ARCHITECTURE.md was not understood')
  assert.ok(tree.files.filter((file) => file.path.startsWith('lib/')).length >= 10, 'the tree was not found')
  assert.deepEqual(check(tree), [])
})
