/**
 * The far end of systemd-notify: a datagram socket, which Node does not have, held by Python. It takes what comes as systemd
 * does, with the descriptor of the barrier that it closes.
 */
import { spawn } from 'node:child_process'
import { once } from 'node:events'

const PROGRAM = `
import socket, sys
s = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
s.bind(sys.argv[1])
print("bound", flush=True)
while True:
    print(s.recv(4096).decode().strip(), flush=True)
`

export interface NotifySocket extends AsyncDisposable {
  readonly path: string
  /** What came, without the barriers of systemd-notify. */
  readonly messages: () => string[]
}

export async function notifySocket(path: string): Promise<NotifySocket> {
  const child = spawn('python3', ['-c', PROGRAM, path], { stdio: ['ignore', 'pipe', 'inherit'] })
  let output = ''
  child.stdout.on('data', (bytes: Buffer) => {
    output += bytes.toString('utf8')
  })
  const gone = once(child, 'exit')
  while (!output.startsWith('bound\n')) {
    const [code] = await Promise.race([gone, once(child.stdout, 'data').then(() => [undefined])])
    if (code !== undefined) throw new Error(`python3 ended with ${code}`)
  }
  const messages = (): string[] =>
    output.split('\n').filter((line) => line !== '' && line !== 'bound' && line !== 'BARRIER=1')
  return {
    path,
    messages,
    [Symbol.asyncDispose]: async () => {
      child.kill('SIGKILL')
      await gone
    },
  }
}
