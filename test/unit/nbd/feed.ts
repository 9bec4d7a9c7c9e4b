/** Feeds a decoder with bytes cut in different ways. */
export interface Pushable<Message> {
  push(bytes: Buffer): Generator<Message, void, undefined>
}

/** All messages of `bytes`, pushed in pieces that end at the given places. */
export function feed<Message>(
  decoder: Pushable<Message>,
  bytes: Buffer,
  cuts: readonly number[] = [],
): Message[] {
  const messages: Message[] = []
  let start = 0
  for (const end of [...cuts, bytes.length]) {
    messages.push(...decoder.push(bytes.subarray(start, end)))
    start = end
  }
  return messages
}

export function hex(text: string): Buffer {
  return Buffer.from(text.replace(/\s+/g, ''), 'hex')
}

/** A chunk of a structured reply, written out by hand so that it can be wrong in any way. */
export function rawChunk(
  type: number,
  flags: number,
  cookie: bigint,
  payload: Buffer,
  length: number = payload.length,
): Buffer {
  const head = Buffer.alloc(20)
  head.writeUInt32BE(0x668e33ef, 0)
  head.writeUInt16BE(flags, 4)
  head.writeUInt16BE(type, 6)
  head.writeBigUInt64BE(cookie, 8)
  head.writeUInt32BE(length, 16)
  return Buffer.concat([head, payload])
}
