/**
 * swam-peer: what the far side's SSH login reaches (the forced command of its key). Joins stdin and stdout to the
 * local swamd's peer socket, bytes both ways with backpressure, and ends when either side ends. It first tells the
 * daemon, in one line of JSON, whose key it was and where the connection came from; neither comes from the far side.
 *
 * It is started once for each channel, so it imports nothing beyond node:net and understands nothing of what passes.
 */
import { Socket } from 'node:net'

/** As `swam` has it; the far side tells a dead daemon from a refused key by it (lib/peer/ssh.ts). */
const NO_DAEMON_STATUS = 3
const USAGE = 'usage: swam-peer --peer NAME --socket PATH'

function fail(status: number, message: string): never {
  process.stderr.write(`swam-peer: ${message}\n`)
  process.exit(status)
}

function readArguments(words: readonly string[]): { peer: string; socket: string } {
  const values = new Map<string, string>()
  for (let index = 0; index < words.length; index += 2) {
    const name = words[index]!
    const value = words[index + 1]
    if ((name !== '--peer' && name !== '--socket') || value === undefined) fail(2, USAGE)
    values.set(name, value)
  }
  const peer = values.get('--peer')
  const socket = values.get('--socket')
  if (peer === undefined || socket === undefined || peer === '' || socket === '') fail(2, USAGE)
  return { peer, socket }
}

/** Bytes from one to the other; calls `ended` when all that `from` gave has left `to`. */
function relay(from: Socket, to: Socket, ended: () => void): void {
  from.on('data', (bytes) => {
    if (!to.write(bytes)) from.pause()
  })
  to.on('drain', () => from.resume())
  from.on('end', () => to.end(ended))
}

const { peer, socket: path } = readArguments(process.argv.slice(2))
// process.stdout would block on a pipe; both descriptors are pipes or sockets under sshd.
const input = new Socket({ fd: 0, readable: true, writable: false })
const output = new Socket({ fd: 1, readable: false, writable: true })
const daemon = new Socket({ allowHalfOpen: true })

let connected = false
daemon.on('error', (error) => {
  if (connected) fail(1, `swamd's socket: ${error.message}`)
  fail(NO_DAEMON_STATUS, `cannot reach swamd at ${path}: ${error.message}`)
})
// A peer that went away is an ordinary end.
input.on('error', () => process.exit(0))
output.on('error', () => process.exit(0))

daemon.connect({ path })
daemon.on('connect', () => {
  connected = true
})
// SSH_CONNECTION is set by sshd: client address and port, server address and port.
const preamble = { peer, version: 1, connection: process.env['SSH_CONNECTION'] ?? '' }
daemon.write(`${JSON.stringify(preamble)}\n`)
relay(input, daemon, () => process.exit(0))
relay(daemon, output, () => process.exit(0))
