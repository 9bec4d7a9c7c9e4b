/**
 * A real sshd on loopback for the tests of the peer channel: own host key, own client key with the forced command
 * swam-peer, a port that the kernel found free. Everything lies in one temporary directory and ends with `close`.
 */
import { type ChildProcess, execFileSync, spawn } from 'node:child_process'
import { once } from 'node:events'
import { chmodSync, mkdirSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { type AddressInfo, connect, createServer } from 'node:net'
import { tmpdir, userInfo } from 'node:os'
import { join } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'

const ROOT = join(import.meta.dirname, '../..')
const SSHD = '/usr/sbin/sshd'

export interface TestSshd {
  readonly directory: string
  readonly port: number
  readonly user: string
  readonly hostKey: string
  /** Its key has the forced command. */
  readonly privateKey: string
  /** Its key may run anything. */
  readonly openKey: string
  /** Its key is not known. */
  readonly strangeKey: string
  readonly socketPath: string
  readonly process: ChildProcess
  log(): string
  /** Kills the listening sshd and those that serve connections. */
  kill(): void
  close(): Promise<void>
}

export async function startSshd(options?: {
  readonly lines?: readonly string[]
  readonly forced?: string
}): Promise<TestSshd> {
  const directory = mkdtempSync(join(tmpdir(), 'swam-sshd-'))
  chmodSync(directory, 0o711)
  const key = (name: string): string => {
    execFileSync('ssh-keygen', ['-q', '-t', 'ed25519', '-N', '', '-C', name, '-f', join(directory, name)])
    return readFileSync(join(directory, name), 'utf8')
  }
  const publicKey = (name: string): string => readFileSync(join(directory, `${name}.pub`), 'utf8').trim()
  key('host')
  const privateKey = key('peer')
  const openKey = key('open')
  const strangeKey = key('strange')
  const socketPath = join(directory, 'peer.sock')
  const forced = options?.forced ?? `${ROOT}/bin/swam-peer --peer far1 --socket ${socketPath}`
  writeFileSync(
    join(directory, 'authorized_keys'),
    `restrict,command="${forced}" ${publicKey('peer')}\n${publicKey('open')}\n`,
  )
  const port = await freePort()
  writeFileSync(
    join(directory, 'sshd_config'),
    [
      `Port ${port}`,
      'ListenAddress 127.0.0.1',
      `HostKey ${directory}/host`,
      `AuthorizedKeysFile ${directory}/authorized_keys`,
      `PidFile ${directory}/pid`,
      'UsePAM no',
      'StrictModes no',
      'PermitRootLogin prohibit-password',
      'PasswordAuthentication no',
      // bash reads ~/.bashrc even for a command when sshd starts it: what the machine's owner put there is not our test.
      `SetEnv HOME=${directory}`,
      ...(options?.lines ?? []),
      '',
    ].join('\n'),
  )
  mkdirSync('/run/sshd', { recursive: true, mode: 0o755 })
  const child = spawn(SSHD, ['-D', '-e', '-f', join(directory, 'sshd_config')], {
    stdio: ['ignore', 'ignore', 'pipe'],
  })
  let log = ''
  child.stderr.on('data', (bytes: Buffer) => {
    log += bytes.toString('utf8')
  })
  const exited = once(child, 'exit')
  const kill = (): void => {
    // Connections are children of the listener, each in a session of its own: find them before it dies.
    const served = child.pid === undefined ? [] : descendants(child.pid)
    for (const pid of [child.pid, ...served]) {
      try {
        if (pid !== undefined) process.kill(pid, 'SIGKILL')
      } catch {
        // It has ended by itself.
      }
    }
  }
  await untilListening(port, () => {
    if (child.exitCode !== null) throw new Error(`sshd ended with ${child.exitCode}: ${log}`)
  })
  const [type, base64] = publicKey('host').split(' ')
  return {
    directory,
    port,
    user: userInfo().username,
    hostKey: `${type} ${base64}`,
    privateKey,
    openKey,
    strangeKey,
    socketPath,
    process: child,
    log: () => log,
    kill,
    close: async () => {
      kill()
      await exited
      rmSync(directory, { recursive: true, force: true })
    },
  }
}

export async function freePort(): Promise<number> {
  const server = createServer()
  server.listen(0, '127.0.0.1')
  await once(server, 'listening')
  const { port } = server.address() as AddressInfo
  server.close()
  await once(server, 'close')
  return port
}

async function untilListening(port: number, check: () => void): Promise<void> {
  for (let attempt = 0; attempt < 200; attempt += 1) {
    check()
    const there = await new Promise<boolean>((resolve) => {
      const probe = connect({ port, host: '127.0.0.1' })
      probe.on('connect', () => {
        probe.destroy()
        resolve(true)
      })
      probe.on('error', () => resolve(false))
    })
    if (there) return
    await sleep(25)
  }
  throw new Error(`sshd does not listen on port ${port}`)
}

function descendants(pid: number): number[] {
  const found: number[] = []
  let children = ''
  try {
    children = readFileSync(`/proc/${pid}/task/${pid}/children`, 'utf8')
  } catch {
    return found
  }
  for (const child of children.trim().split(' ').filter(Boolean).map(Number))
    found.push(child, ...descendants(child))
  return found
}
