/** A host for joins in a folder: its config, its login's home and its key, with the rights of whoever runs the test. */
import { mkdir, mkdtemp, readFile, rm, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import type { TestContext } from 'node:test'
import type { HostFacts } from '../../../server/join/facts.ts'
import { type JoinHost, keyPathFor, publicKeyAt } from '../../../server/join/this-host.ts'

export const KEY_HERE = 'ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIFHo0R9OGeVKl4pwxTbyTCX9jYO2d3mHqDJsCRUXyfsE'
export const KEY_THERE = 'ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA'
export const KEY_LOGIN = 'ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIBERERERERERERERERERERERERERERERERERERERERER'

/** Of the other host. Its name is its address, so nothing is looked up. */
export const THEIRS: HostFacts = {
  release: '0.1.0',
  site: 'fra',
  user: 'swam',
  sshPort: 22,
  hostKey: KEY_THERE,
  publicKey: KEY_LOGIN,
  names: ['192.0.2.7'],
  addresses: ['192.0.2.7', '10.0.0.7'],
}

export interface Rig {
  readonly folder: string
  readonly configPath: string
  readonly host: JoinHost
  readonly keysPath: string
  /** Everything that a join may change: config, authorized_keys, key; '' where there is none. */
  laidDown(): Promise<readonly string[]>
}

export async function rigged(
  context: TestContext,
  config = '# kept  \n\nsite = "ams"\n',
  keys = '',
): Promise<Rig> {
  const folder = await mkdtemp(join(tmpdir(), 'swam-join-'))
  context.after(() => rm(folder, { recursive: true, force: true }))
  const configPath = join(folder, 'swam.toml')
  const home = join(folder, 'home')
  const keysPath = join(home, '.ssh/authorized_keys')
  await writeFile(configPath, `${config}`.replace('site =', `runDir = "${folder}/run"\nsite =`), {
    mode: 0o640,
  })
  await mkdir(join(home, '.ssh'), { recursive: true })
  if (keys !== '') await writeFile(keysPath, keys)
  const entry = { uid: process.getuid!(), gid: process.getgid!(), home, shell: '/bin/sh' }
  const read = async (path: string): Promise<string> => await readFile(path, 'latin1').catch(() => '')
  return {
    folder,
    configPath,
    keysPath,
    host: {
      login: async () => entry,
      facts: async (_config, path) => ({
        ...THEIRS,
        site: 'ams',
        hostKey: KEY_HERE,
        publicKey: await publicKeyAt(keyPathFor(path)),
        names: ['192.0.2.1'],
        addresses: ['192.0.2.1'],
      }),
    },
    laidDown: async () => [await read(configPath), await read(keysPath), await read(keyPathFor(configPath))],
  }
}
