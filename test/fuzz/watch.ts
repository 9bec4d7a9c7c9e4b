/**
 * Watches memory while an input runs: every buffer that is asked for is compared with the target's ceiling before
 * anything is allocated, so that "the announced length is checked first" is seen at once and not when memory runs out.
 * Only what goes through Buffer and Uint32Array is seen; the rest shows in the size of the process.
 */
const limits = { bytesMax: Number.POSITIVE_INFINITY, violation: undefined as Error | undefined }

function check(what: string, bytes: number): void {
  if (!(bytes > limits.bytesMax)) return
  // Whoever is watched may catch what is thrown here: it is remembered too.
  limits.violation ??= new Error(`${what} of ${bytes} bytes, the target's ceiling is ${limits.bytesMax}`)
  throw limits.violation
}

let installed = false

function install(): void {
  if (installed) return
  installed = true
  for (const name of ['alloc', 'allocUnsafe', 'allocUnsafeSlow'] as const) {
    const original = Buffer[name].bind(Buffer) as (size: number, ...more: unknown[]) => Buffer
    Buffer[name] = ((size: number, ...more: unknown[]): Buffer => {
      check(`Buffer.${name}`, size)
      return original(size, ...more)
    }) as never
  }
  globalThis.Uint32Array = new Proxy(Uint32Array, {
    construct(target, parameters: [unknown], newTarget): object {
      if (typeof parameters[0] === 'number') check('new Uint32Array', parameters[0] * 4)
      return Reflect.construct(target, parameters, newTarget) as object
    },
  })
}

export function watchAllocations(bytesMax: number): void {
  install()
  limits.bytesMax = bytesMax
  limits.violation = undefined
}

/** Stops watching. @throws when the ceiling was passed */
export function checkAllocations(): void {
  limits.bytesMax = Number.POSITIVE_INFINITY
  if (limits.violation !== undefined) throw limits.violation
}
