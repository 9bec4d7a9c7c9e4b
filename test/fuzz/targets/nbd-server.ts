/** What a client may send to our NBD server: options, requests, whole sessions. */
import assert from 'node:assert/strict'
import { duplexPair } from 'node:stream'
import { ALL_FEATURES } from '../../../lib/block/device.ts'
import { MemoryDevice } from '../../../lib/block/memory.ts'
import { LostError, ProtocolError, TimeoutError } from '../../../lib/core/errors.ts'
import * as limits from '../../../lib/core/limits.ts'
import * as nbd from '../../../lib/nbd/protocol/constants.ts'
import { type NbdRequest, RequestDecoder } from '../../../lib/nbd/protocol/decode.ts'
import { encodeRequestHeader } from '../../../lib/nbd/protocol/encode.ts'
import {
  ClientHandshakeDecoder,
  encodeClientFlags,
  encodeOption,
} from '../../../lib/nbd/protocol/handshake.ts'
import {
  encodeInfoRequest,
  encodeMetaRequest,
  parseExportName,
  parseInfoRequest,
  parseMetaRequest,
} from '../../../lib/nbd/protocol/options.ts'
import { serveNbd } from '../../../lib/nbd/server.ts'
import { validateRequest } from '../../../lib/nbd/validate.ts'
import { allowing, checkSplits, cutsOf } from '../checks.ts'
import { below, encodeNumber, pick, type Random } from '../mutate.ts'
import type { FuzzTarget } from '../target.ts'

const SIZE = 4 * 1024 * 1024
const OPTIONS = Array.from({ length: 13 }, (_value, index) => index)
const COMMANDS = Array.from({ length: 10 }, (_value, index) => index)
const NAMES = ['', 'disk', 'drive-virtio-disk0', 'x'.repeat(300)]

export const NBD_WORDS: readonly Buffer[] = [
  ...[nbd.NBD_INIT_MAGIC, nbd.NBD_OPTS_MAGIC, nbd.NBD_CLISERV_MAGIC, nbd.NBD_REP_MAGIC].map((magic) =>
    encodeNumber(magic, 8),
  ),
  ...[
    nbd.NBD_REQUEST_MAGIC,
    nbd.NBD_EXTENDED_REQUEST_MAGIC,
    nbd.NBD_SIMPLE_REPLY_MAGIC,
    nbd.NBD_STRUCTURED_REPLY_MAGIC,
    limits.NBD_PAYLOAD_BYTES_MAX,
    limits.NBD_OPTION_BYTES_MAX,
    nbd.NBD_STRING_BYTES_MAX,
    SIZE,
  ].map((number) => encodeNumber(BigInt(number), 4)),
  ...OPTIONS.map((option) => encodeNumber(BigInt(option), 4)),
  Buffer.from('base:allocation'),
  Buffer.from('disk'),
]

function optionData(random: Random, option: number): Buffer {
  const name = pick(random, NAMES)
  switch (option) {
    case nbd.NBD_OPT_EXPORT_NAME:
      return Buffer.from(name)
    case nbd.NBD_OPT_INFO:
    case nbd.NBD_OPT_GO:
      return encodeInfoRequest({ name, infos: OPTIONS.slice(0, below(random, 6)) })
    case nbd.NBD_OPT_LIST_META_CONTEXT:
    case nbd.NBD_OPT_SET_META_CONTEXT:
      return encodeMetaRequest({
        name,
        queries: ['base:', 'base:allocation', 'qemu:x'].slice(0, below(random, 4)),
      })
    default:
      return below(random, 4) === 0 ? Buffer.from('rest') : Buffer.alloc(0)
  }
}

function options(random: Random): Buffer {
  const parts = [encodeClientFlags(below(random, 4))]
  for (let count = below(random, 8); count > 0; count--) {
    const option = pick(random, OPTIONS)
    parts.push(encodeOption(option, optionData(random, option)))
  }
  return Buffer.concat(parts)
}

function requests(random: Random): Buffer {
  const parts: Buffer[] = []
  for (let count = 1 + below(random, 12); count > 0; count--) {
    const command = pick(random, COMMANDS)
    const length = pick(random, [0, 1, 511, 512, 4096, 65_536, SIZE])
    const offset = pick(random, [0, 512, 4096, SIZE - 4096, SIZE, 2 ** 40])
    const writes = command === nbd.NBD_CMD_WRITE
    const bytes = writes ? Math.min(length, 4096) : length
    const flags = below(random, 3) === 0 ? 1 << below(random, 6) : 0
    parts.push(encodeRequestHeader({ command, flags, cookie: BigInt(parts.length), offset, length: bytes }))
    if (writes) parts.push(Buffer.alloc(bytes, parts.length))
  }
  return Buffer.concat(parts)
}

export const nbdOptions: FuzzTarget = {
  name: 'nbd-options',
  inputBytesMax: 8192,
  allocationBytesMax: limits.NBD_OPTION_BYTES_MAX,
  dictionary: NBD_WORDS,
  generate: options,
  run(input) {
    checkSplits(() => new ClientHandshakeDecoder(), input)
    // What an option holds is looked at by itself as well.
    const known = (work: () => unknown): { readonly value: unknown } | undefined => {
      const outcome = allowing([ProtocolError], work)
      return 'value' in outcome ? outcome : undefined
    }
    const info = known(() => parseInfoRequest(input))
    if (info !== undefined) {
      assert.deepEqual(parseInfoRequest(encodeInfoRequest(info.value as never)), info.value)
    }
    const meta = known(() => parseMetaRequest(input))
    if (meta !== undefined) {
      assert.deepEqual(parseMetaRequest(encodeMetaRequest(meta.value as never)), meta.value)
    }
    const name = known(() => parseExportName(input))
    if (name !== undefined) assert.ok(Buffer.from(name.value as string).equals(input))
  },
}

export const nbdRequests: FuzzTarget = {
  name: 'nbd-requests',
  inputBytesMax: 16_384,
  allocationBytesMax: limits.NBD_PAYLOAD_BYTES_MAX,
  dictionary: NBD_WORDS,
  generate: requests,
  run(input) {
    const make = (): RequestDecoder => new RequestDecoder({ payloadBytesMax: limits.NBD_PAYLOAD_BYTES_MAX })
    checkSplits(make, input)
    allowing([ProtocolError], () => {
      for (const request of make().push(input)) judge(request)
    })
  },
}

/** What the rules let pass must lie inside the device and be what was offered. */
function judge(request: NbdRequest): void {
  const minimum = 512
  const agreed = {
    size: SIZE,
    blockSizes: { minimum, preferred: 4096, maximum: 65_536 },
    features: { ...ALL_FEATURES, trim: false },
    structured: true,
    allocation: false,
  }
  if (validateRequest(request, agreed).errno !== 0) return
  const { type, offset, length } = request
  assert.ok(type !== 'unknown' && type !== 'trim' && type !== 'blockStatus', `${type} passed`)
  if (type === 'flush' || type === 'disc') return
  assert.ok(length > 0 && offset + length <= SIZE && offset % minimum === 0 && length % minimum === 0)
  assert.ok((type !== 'read' && type !== 'write') || length <= 65_536)
}

/** A device that complains when it is asked for what the rules should have refused. */
class StrictDevice extends MemoryDevice {
  #check(offset: number, length: number): void {
    if (!(length > 0 && offset >= 0 && offset + length <= this.size)) {
      broken ??= new Error(`the device was asked for ${length} bytes at ${offset}`)
    }
  }
  override async read(offset: number, length: number): Promise<Buffer> {
    this.#check(offset, length)
    return await super.read(offset, length)
  }
  override async write(offset: number, data: Buffer): Promise<void> {
    this.#check(offset, data.length)
    await super.write(offset, data)
  }
  override async writeZeroes(offset: number, length: number): Promise<void> {
    this.#check(offset, length)
    await super.writeZeroes(offset, length)
  }
}

let broken: Error | undefined

export const nbdServe: FuzzTarget = {
  name: 'nbd-serve',
  inputBytesMax: 16_384,
  allocationBytesMax: limits.NBD_PAYLOAD_BYTES_MAX,
  dictionary: NBD_WORDS,
  generate: (random) => Buffer.concat([options(random), goes, requests(random)]),
  async run(input) {
    broken = undefined
    let open = 0
    const [client, server] = duplexPair()
    // Replies are read and dropped; their sizes are bounded by what was asked for.
    client.on('error', () => {}).resume()
    const served = serveNbd(server, {
      exports: {
        list: async () => ['disk', ''],
        open: async (name) => {
          if (name === 'broken') throw new Error('cannot be opened')
          if (name !== 'disk' && name !== '') return undefined
          open++
          const device = new StrictDevice({ size: SIZE })
          const close = device.close.bind(device)
          device.close = async () => {
            open--
            await close()
          }
          return device
        },
        description: () => 'a disk',
      },
      requestsMax: 8,
    })
    let start = 0
    for (const end of [...cutsOf(input), input.length]) {
      if (!client.destroyed) client.write(input.subarray(start, end))
      start = end
    }
    client.end()
    await served.catch((error: unknown) => {
      const known = [ProtocolError, LostError, TimeoutError].some((one) => error instanceof one)
      if (!known) throw error
    })
    client.destroy()
    if (broken !== undefined) throw broken
    assert.equal(open, 0, 'every device that was opened is closed again')
  },
}

const goes = encodeOption(nbd.NBD_OPT_GO, encodeInfoRequest({ name: 'disk', infos: [] }))
