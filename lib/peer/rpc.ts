/**
 * Requests and responses in JSON over a control bundle, in both directions at once. Small things only: a call and its
 * answer fit in one frame of 256 KiB. It takes the bundle's onFrame; frames of other types go to `other` or end the
 * bundle. It does not retry: a call whose bundle was lost rejects with LostError.
 */
import { errorText, LostError, ProtocolError, RefusedError, SwamError, TimeoutError } from '../core/errors.ts'
import { RPC_BYTES_MAX, RPC_CALLS_MAX, RPC_SERVED_MAX, RPC_TIMEOUT_MS } from '../core/limits.ts'
import { FRAME_CONTROL } from '../wire/frame.ts'
import type { Bundle } from './bundle.ts'
import type { FrameHandler } from './options.ts'

export const RPC_REQUEST: number = 64
export const RPC_RESPONSE: number = 65

export type RpcHandler = (params: unknown) => Promise<unknown>

interface Call {
  readonly method: string
  readonly resolve: (result: unknown) => void
  readonly reject: (error: Error) => void
  readonly timer: NodeJS.Timeout
}

export class Rpc {
  readonly #bundle: Bundle
  readonly #handlers = new Map<string, RpcHandler>()
  readonly #calls = new Map<number, Call>()
  #nextId = 1
  #serving = 0

  constructor(bundle: Bundle, options?: { readonly other?: FrameHandler }) {
    this.#bundle = bundle
    void bundle.closed.then((error) => this.#end(error))
    bundle.onFrame = (type, payload, cls) => {
      if (type === RPC_REQUEST) this.#request(payload)
      else if (type === RPC_RESPONSE) this.#response(payload)
      else if (options?.other !== undefined) options.other(type, payload, cls)
      else throw new ProtocolError(`rpc: frame type ${type} is not expected on a ${bundle.kind} bundle`)
    }
  }

  /** `fn` gets what the peer sent, unchecked. A SwamError that it throws keeps its code on the way back. */
  handle(method: string, fn: RpcHandler): void {
    this.#handlers.set(method, fn)
  }

  async call(method: string, params: unknown, options?: { readonly timeoutMs?: number }): Promise<unknown> {
    if (this.#calls.size >= RPC_CALLS_MAX) {
      throw new RefusedError(`rpc ${method}: ${RPC_CALLS_MAX} calls to ${this.#bundle.peer} wait already`)
    }
    const id = this.#nextId++
    const payload = encode(`rpc ${method}`, { id, method, params })
    const timeoutMs = options?.timeoutMs ?? RPC_TIMEOUT_MS
    return await new Promise((resolve, reject) => {
      const timer = setTimeout(() => {
        this.#calls.delete(id)
        reject(new TimeoutError(`rpc ${method}: ${this.#bundle.peer} gave no answer in ${timeoutMs} ms`))
      }, timeoutMs)
      this.#calls.set(id, { method, resolve, reject, timer })
      this.#bundle.send(RPC_REQUEST, [payload], FRAME_CONTROL).catch((error: Error) => {
        this.#take(id)?.reject(error)
      })
    })
  }

  #request(payload: Buffer): void {
    const message = decode('rpc request', payload)
    const id = message['id']
    const method = message['method']
    if (!isId(id)) throw new ProtocolError('rpc request: no usable id')
    if (typeof method !== 'string' || method.length > 64)
      throw new ProtocolError('rpc request: no usable method')
    const handler = this.#handlers.get(method)
    const answer = (response: object): void => {
      // A lost bundle has no one to answer.
      void this.#bundle
        .send(RPC_RESPONSE, [this.#encodeResponse(id, method, response)], FRAME_CONTROL)
        .catch(() => undefined)
    }
    if (handler === undefined) {
      answer({ error: { code: 'SWAM_REFUSED', message: `method ${JSON.stringify(method)} is not known` } })
      return
    }
    if (this.#serving >= RPC_SERVED_MAX) {
      answer({ error: { code: 'SWAM_REFUSED', message: `${RPC_SERVED_MAX} calls are served already` } })
      return
    }
    this.#serving += 1
    void this.#serve(handler, message['params'])
      .then(answer)
      .finally(() => {
        this.#serving -= 1
      })
  }

  async #serve(handler: RpcHandler, params: unknown): Promise<object> {
    try {
      return { result: await handler(params) }
    } catch (error) {
      return { error: errorFields(error) }
    }
  }

  #encodeResponse(id: number, method: string, response: object): Buffer {
    try {
      return encode(`rpc ${method}: the answer`, { id, ...response })
    } catch (error) {
      return encode('rpc', { id, error: errorFields(error) })
    }
  }

  #response(payload: Buffer): void {
    const message = decode('rpc response', payload)
    const id = message['id']
    if (!isId(id)) throw new ProtocolError('rpc response: no usable id')
    // A response that is not waited for belongs to a call that timed out.
    const call = this.#take(id)
    if (call === undefined) return
    const error = message['error']
    if (error === undefined) call.resolve(message['result'])
    else call.reject(toError(`${this.#bundle.peer}: rpc ${call.method}`, error))
  }

  #take(id: number): Call | undefined {
    const call = this.#calls.get(id)
    if (call === undefined) return undefined
    this.#calls.delete(id)
    clearTimeout(call.timer)
    return call
  }

  #end(error: Error | undefined): void {
    for (const [id, call] of [...this.#calls]) {
      this.#take(id)
      call.reject(
        new LostError(
          `rpc ${call.method}: ${error === undefined ? 'the bundle was closed' : error.message}`,
          {
            cause: error,
          },
        ),
      )
    }
  }
}

function isId(value: unknown): value is number {
  return typeof value === 'number' && Number.isSafeInteger(value) && value > 0
}

function errorFields(error: unknown): { code: string; message: string } {
  return {
    code: error instanceof SwamError ? error.code : 'SWAM_FAILED',
    message: errorText(error).slice(0, 4096),
  }
}

/** The class that the code stands for, so that callers on both sides of the wire handle an error alike. */
function toError(where: string, fields: unknown): Error {
  const { code, message } = (typeof fields === 'object' && fields !== null ? fields : {}) as Record<
    string,
    unknown
  >
  if (typeof code !== 'string' || typeof message !== 'string') {
    return new ProtocolError(`${where}: an error without code and message`)
  }
  const text = `${where}: ${message.slice(0, 4096)}`
  switch (code) {
    case 'SWAM_REFUSED':
      return new RefusedError(text)
    case 'SWAM_LOST':
      return new LostError(text)
    case 'SWAM_TIMEOUT':
      return new TimeoutError(text)
    case 'SWAM_PROTOCOL':
      return new ProtocolError(text)
    default:
      return new SwamError(code.slice(0, 64), text)
  }
}

function encode(what: string, value: object): Buffer {
  const payload = Buffer.from(JSON.stringify(value), 'utf8')
  if (payload.length > RPC_BYTES_MAX) {
    throw new RefusedError(`${what}: ${payload.length} bytes, at most ${RPC_BYTES_MAX} fit`)
  }
  return payload
}

function decode(what: string, payload: Buffer): Record<string, unknown> {
  if (payload.length > RPC_BYTES_MAX) {
    throw new ProtocolError(`${what}: ${payload.length} bytes, expected at most ${RPC_BYTES_MAX}`)
  }
  let value: unknown
  try {
    value = JSON.parse(payload.toString('utf8'))
  } catch (error) {
    throw new ProtocolError(`${what}: not JSON`, { cause: error })
  }
  if (typeof value !== 'object' || value === null || Array.isArray(value)) {
    throw new ProtocolError(`${what}: expected a JSON object`)
  }
  return value as Record<string, unknown>
}
