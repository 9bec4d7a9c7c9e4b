/** The control socket: who may reach it, what it takes, and that no client, however broken, stops it. */
import assert from 'node:assert/strict'
import { link, mkdtemp, rm, stat, symlink, writeFile } from 'node:fs/promises'
import { connect, createServer } from 'node:net'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterEach, beforeEach, test } from 'node:test'
import {
  ConfigError,
  LostError,
  ProtocolError,
  RefusedError,
  TimeoutError,
} from '../../../lib/core/errors.ts'
import { CONTROL_ANSWER_BYTES_MAX } from '../../../lib/core/limits.ts'
import { type ControlServer, callControl, serveControl } from '../../../server/control.ts'

let directory: string
let path: string
let server: ControlServer | undefined
let errors: unknown[]

beforeEach(async () => {
  directory = await mkdtemp(join(tmpdir(), 'swam-control-'))
  path = join(directory, 'control.sock')
  errors = []
})

afterEach(async () => {
  await server?.close()
  server = undefined
  await rm(directory, { recursive: true })
})

async function serve(handlers: Parameters<typeof serveControl>[0]['handlers'], mode = 0o660): Promise<void> {
  server = await serveControl({
    path,
    mode,
    handlers,
    requestBytesMax: 4096,
    onError: (error) => errors.push(error),
  })
}

/** Sends raw bytes and gives everything that comes back until the server closes. */
function raw(bytes: string): Promise<string> {
  return new Promise((resolve, reject) => {
    const socket = connect({ path })
    let text = ''
    socket.on('data', (piece) => {
      text += piece.toString()
    })
    socket.on('error', reject)
    socket.on('close', () => resolve(text))
    socket.write(bytes)
  })
}

test('a request reaches its handler and the answer comes back; also many at once', async () => {
  await serve({ add: async (params) => ({ sum: (params as number[]).reduce((a, b) => a + b, 0) }) })
  const answers = await Promise.all([1, 2, 3].map((n) => callControl(path, 'add', [n, 10])))
  assert.deepEqual(answers, [{ sum: 11 }, { sum: 12 }, { sum: 13 }])
  assert.deepEqual(errors, [])
})

test('a handler without a result answers null; a failing one refuses with its reason', async () => {
  await serve({
    nothing: async () => undefined,
    fails: async () => {
      throw new RefusedError('no such guest: vm')
    },
  })
  assert.equal(await callControl(path, 'nothing', null), null)
  await assert.rejects(callControl(path, 'fails', null), (error) => {
    assert.ok(error instanceof RefusedError)
    assert.equal(error.message, 'no such guest: vm')
    return true
  })
})

for (const { name, bytes, message } of [
  { name: 'no JSON', bytes: 'hello\n', message: /expected JSON/ },
  { name: 'no object', bytes: '[1]\n', message: /expected a JSON object/ },
  { name: 'no method', bytes: '{"version":1}\n', message: /expected a request/ },
  { name: 'another version', bytes: '{"version":2,"method":"ok"}\n', message: /expected a request/ },
  { name: 'an unknown method', bytes: '{"version":1,"method":"toString"}\n', message: /unknown method/ },
  { name: 'a line beyond the ceiling', bytes: `"${'x'.repeat(5000)}`, message: /at most 4096 bytes/ },
]) {
  test(`a bad request is answered and the next one served: ${name}`, async () => {
    await serve({ ok: async () => 'fine' })
    const answer = JSON.parse(await raw(bytes))
    assert.equal(answer.ok, false)
    assert.match(answer.message, message)
    assert.equal(errors.length, 1)
    assert.equal(await callControl(path, 'ok', null), 'fine')
  })
}

test('a client that leaves aborts the signal of its handler', async () => {
  let aborted: (() => void) | undefined
  const left = new Promise<void>((resolve) => {
    aborted = resolve
  })
  await serve({
    wait: (_params, signal) =>
      new Promise((resolve) =>
        signal.addEventListener('abort', () => {
          aborted?.()
          resolve(null)
        }),
      ),
  })
  await assert.rejects(callControl(path, 'wait', null, { timeoutMs: 50 }), TimeoutError)
  await left
})

test('the socket has its mode, and is gone after close', async () => {
  await serve({}, 0o600)
  assert.equal((await stat(path)).mode & 0o777, 0o600)
  await server?.close()
  await server?.close()
  await assert.rejects(stat(path), { code: 'ENOENT' })
})

test('a stale socket is replaced, a live one and another file are refused', async () => {
  const dead = createServer()
  await new Promise<void>((resolve) => dead.listen(join(directory, 'other.sock'), resolve))
  // A socket file whose listener is gone without removing it: linked under a second name first.
  await link(join(directory, 'other.sock'), path)
  await new Promise<void>((resolve) => dead.close(() => resolve()))
  await serve({ ok: async () => 1 })
  assert.equal(await callControl(path, 'ok', null), 1)
  await assert.rejects(
    serveControl({ path, mode: 0o600, handlers: {}, requestBytesMax: 10 }),
    (error) => error instanceof ConfigError && /another swamd/.test(error.message),
  )
  assert.equal(await callControl(path, 'ok', null), 1)
  await writeFile(join(directory, 'file'), '')
  for (const name of ['file', 'link']) {
    if (name === 'link') await symlink(path, join(directory, name))
    await assert.rejects(
      serveControl({ path: join(directory, name), mode: 0o600, handlers: {}, requestBytesMax: 10 }),
      ConfigError,
    )
  }
})

test('an unknown group is a config error', async () => {
  await assert.rejects(
    serveControl({ path, mode: 0o660, group: 'no-such-group-here', handlers: {}, requestBytesMax: 10 }),
    ConfigError,
  )
})

test('the client: nobody there, an answer too large, an answer that is none, a server that hangs up', async () => {
  await assert.rejects(callControl(path, 'x', null), (error) => {
    assert.ok(error instanceof LostError)
    assert.equal((error.cause as NodeJS.ErrnoException).code, 'ENOENT')
    return true
  })
  let reply = ''
  const whole = (bytes: number): string => `{"version":1,"ok":true,"result":"${'x'.repeat(bytes)}"}\n`
  const fake = createServer((socket) => {
    socket.on('error', () => {})
    socket.once('data', () => socket.end(reply))
  })
  await new Promise<void>((resolve) => fake.listen(path, resolve))
  try {
    for (const { text, type } of [
      { text: whole(64), type: ProtocolError },
      { text: 'ssh: hello\n', type: ProtocolError },
      { text: '{"version":9,"ok":true}\n', type: ProtocolError },
      { text: '{"version":1}\n', type: RefusedError },
      { text: '{"versi', type: LostError },
      { text: '', type: LostError },
    ]) {
      reply = text
      await assert.rejects(callControl(path, 'x', null, { answerBytesMax: 64 }), type, text)
    }
    reply = whole(100)
    assert.equal(await callControl(path, 'x', null), 'x'.repeat(100))
    reply = whole(CONTROL_ANSWER_BYTES_MAX)
    await assert.rejects(callControl(path, 'x', null), /expected at most 16777216 bytes/)
  } finally {
    await new Promise<void>((resolve) => fake.close(() => resolve()))
  }
})

test('many who ask at once get one answer that is made once', async () => {
  let made = 0
  server = await serveControl({
    path,
    mode: 0o600,
    requestBytesMax: 4096,
    making: new Map(),
    handlers: {
      history: async () => {
        made++
        await new Promise((resolve) => setTimeout(resolve, 100))
        return 'x'.repeat(4_000_000)
      },
    },
  })
  const answers = await Promise.all(Array.from({ length: 30 }, () => callControl(path, 'history', null)))
  assert.ok(answers.every((answer) => String(answer).length === 4_000_000))
  assert.equal(made, 1)
  await callControl(path, 'history', null)
  assert.equal(made, 2, 'an answer that was given is not given again')
})

/** Writes on until the server has let go, and reads nothing: for how long that took. */
async function letGoAfter(first: string, more: string): Promise<number> {
  const socket = connect({ path })
  socket.pause()
  const started = performance.now()
  const failed = new Promise<void>((resolve) => socket.on('error', () => resolve()))
  socket.write(first)
  const writing = setInterval(() => socket.write(more), 20)
  const held = new Promise<void>((resolve) => setTimeout(resolve, 5000).unref())
  await Promise.race([failed, held])
  clearInterval(writing)
  socket.destroy()
  return performance.now() - started
}

test('a client that sends no whole line is let go, also one that drips; one that asked is not', async () => {
  server = await serveControl({
    path,
    mode: 0o600,
    requestBytesMax: 4096,
    requestMs: 200,
    handlers: { slow: () => new Promise((resolve) => setTimeout(resolve, 600, 'fine')) },
  })
  const waiting = callControl(path, 'slow', null)
  for (const first of ['', '{"version":1,']) {
    const ms = await letGoAfter(first, ' ')
    assert.ok(ms >= 190 && ms < 4000, `after ${ms} ms`)
  }
  assert.equal(await waiting, 'fine')
})

test('a client that does not read its answer is let go', async () => {
  server = await serveControl({
    path,
    mode: 0o600,
    requestBytesMax: 4096,
    readMs: 300,
    handlers: { history: async () => 'x'.repeat(4_000_000) },
  })
  const ms = await letGoAfter('{"version":1,"method":"history"}\n', ' ')
  assert.ok(ms >= 290 && ms < 4000, `after ${ms} ms`)
})
