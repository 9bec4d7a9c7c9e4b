/**
 * The queries against a real libvirtd: one of our own, in mount, network and UTS namespaces of its own, with a paused
 * guest that never boots. virsh runs as an unprivileged user, as swamd would. Everything is ended and removed here.
 */
import assert from 'node:assert/strict'
import { type ChildProcess, execFileSync, spawn } from 'node:child_process'
import { mkdirSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { after, before, test } from 'node:test'
import { setTimeout as sleep } from 'node:timers/promises'
import { RefusedError } from '../../lib/core/errors.ts'
import { runCommand } from '../../lib/host/command.ts'
import { Libvirt } from '../../lib/host/libvirt.ts'
import { listeningPorts } from '../../lib/host/procnet.ts'
import { qemuPid } from '../../lib/host/qemu-pid.ts'

const UUID = '5a5a5a5a-1111-4222-8333-444444444444'
const NAME = 'query <& guest'
const STRANGER_UID = 65534

const HOST_SCRIPT = `
set -e
ip link set lo up
for d in run/libvirt var/lib/libvirt var/log/libvirt var/cache/libvirt etc/libvirt; do
  mkdir -p "/$d"; mount --bind "$1/$d" "/$d"
done
exec libvirtd --pid-file /run/libvirt/libvirtd.pid
`

let base: string
let daemon: ChildProcess
let daemonError = ''

function inside(...argv: string[]): string[] {
  return ['nsenter', '-t', String(daemon.pid), '-m', '-n', ...argv]
}

function asRoot(...argv: string[]): string {
  const [program, ...rest] = inside('virsh', '-q', '-c', 'qemu:///system', ...argv)
  return execFileSync(program!, rest, { encoding: 'utf8', stdio: ['ignore', 'pipe', 'pipe'] })
}

function makeLibvirt(): Libvirt {
  const as = ['setpriv', `--reuid=${STRANGER_UID}`, `--regid=${STRANGER_UID}`, '--clear-groups']
  return new Libvirt({ virsh: inside(...as, 'virsh') })
}

before(async () => {
  if (process.getuid?.() !== 0) throw new Error('this test needs root: it starts a libvirtd')
  base = mkdtempSync(join(tmpdir(), 'swam-libvirt-'))
  for (const name of ['run', 'var/lib', 'var/log', 'var/cache', 'etc']) {
    mkdirSync(join(base, name, 'libvirt'), { recursive: true })
  }
  execFileSync('chmod', ['755', base])
  execFileSync('cp', ['-r', '/etc/libvirt/.', join(base, 'etc/libvirt')])
  rmSync(join(base, 'etc/libvirt/qemu'), { recursive: true, force: true })
  writeFileSync(
    join(base, 'etc/libvirt/libvirtd.conf'),
    'auth_unix_ro = "none"\nauth_unix_rw = "none"\nunix_sock_ro_perms = "0777"\nhost_uuid = "11111111-2222-4333-8444-555555555555"\n',
  )
  writeFileSync(
    join(base, 'etc/libvirt/qemu.conf'),
    'user = "root"\ngroup = "root"\nsecurity_driver = "none"\nnamespaces = []\ncgroup_controllers = []\nstdio_handler = "file"\ndynamic_ownership = 0\nremember_owner = 0\n',
  )
  const raw = join(base, 'a.raw')
  const qcow2 = join(base, 'b & c.qcow2')
  execFileSync('truncate', ['-s', '5000192', raw])
  execFileSync('qemu-img', ['create', '-q', '-f', 'qcow2', qcow2, '3G'])
  writeFileSync(
    join(base, 'vm.xml'),
    `<domain type='qemu'><name>query &lt;&amp; guest</name><uuid>${UUID}</uuid><memory unit='MiB'>64</memory><vcpu>1</vcpu>
<os><type arch='x86_64' machine='pc'>hvm</type></os><devices><emulator>/usr/bin/qemu-system-x86_64</emulator>
<disk type='file' device='disk'><driver name='qemu' type='raw'/><source file='${raw}'/><target dev='vda' bus='virtio'/></disk>
<disk type='file' device='disk'><driver name='qemu' type='qcow2'/><source file='${qcow2.replace('&', '&amp;')}'/><target dev='vdb' bus='virtio'/></disk>
<disk type='file' device='cdrom'><target dev='sda' bus='sata'/><readonly/></disk>
<graphics type='vnc' port='5977' listen='127.0.0.1'/>
</devices></domain>`,
  )
  const script = ['sh', '-c', HOST_SCRIPT, 'host', base]
  daemon = spawn('unshare', ['-m', '-n', '-u', '--propagation', 'private', ...script], {
    stdio: ['ignore', 'ignore', 'pipe'],
  })
  daemon.stderr?.on('data', (piece: Buffer) => {
    daemonError = (daemonError + piece.toString()).slice(-4000)
  })
  for (let attempt = 0; ; attempt += 1) {
    try {
      asRoot('hostname')
      break
    } catch (error) {
      if (attempt > 80 || daemon.exitCode !== null)
        throw new Error(`libvirtd does not answer: ${daemonError}`, { cause: error })
      await sleep(250)
    }
  }
  asRoot('create', '--paused', join(base, 'vm.xml'))
})

after(async () => {
  try {
    asRoot('destroy', UUID)
  } catch {
    // It was never started.
  }
  if (daemon.exitCode === null) {
    const ended = new Promise((resolve) => daemon.once('exit', resolve))
    daemon.kill('SIGTERM')
    await ended
  }
  rmSync(base, { recursive: true, force: true })
})

test('a running guest is found by its uuid, with size and format of each disk, by an unprivileged user', async () => {
  const found = await makeLibvirt().runningDomain(UUID)
  assert.deepEqual(found, {
    name: NAME,
    uuid: UUID,
    state: 'paused',
    disks: [
      {
        target: 'vda',
        type: 'file',
        source: join(base, 'a.raw'),
        format: 'raw',
        readOnly: false,
        shareable: false,
        encrypted: false,
        capacity: 5000192,
        alias: 'virtio-disk0',
        backed: false,
      },
      {
        target: 'vdb',
        type: 'file',
        source: join(base, 'b & c.qcow2'),
        format: 'qcow2',
        readOnly: false,
        shareable: false,
        encrypted: false,
        capacity: 3 * 2 ** 30,
        alias: 'virtio-disk1',
        backed: false,
      },
    ],
  })
})

test('a guest that does not run here is undefined, and a uuid that is none is refused', async () => {
  const libvirt = makeLibvirt()
  assert.equal(await libvirt.runningDomain('99999999-9999-4999-8999-999999999999'), undefined)
  await assert.rejects(libvirt.runningDomain('--all'), RefusedError)
})

test('the job of a guest: none under way; and no such guest', async () => {
  const libvirt = makeLibvirt()
  const job = await libvirt.jobInfo(NAME)
  assert.equal(job?.type, 'None')
  assert.equal(await libvirt.jobInfo('no such guest'), undefined)
  await assert.rejects(libvirt.jobInfo('../x'), RefusedError)
})

test('the ports of its QEMU are found', async () => {
  const pidDirectory = join(base, 'run/libvirt/qemu')
  const pid = await qemuPid(NAME, UUID, pidDirectory)
  await assert.rejects(qemuPid(NAME, UUID.replace('5', '6'), pidDirectory), /is not the QEMU/)
  await assert.rejects(qemuPid('other', UUID, pidDirectory), /no pid file/)
  assert.deepEqual(await listeningPorts(pid), [{ address: '127.0.0.1', port: 5977 }])
  await makeLibvirt().reachable()
})

test('the read-only connection can change nothing', async () => {
  const argv = inside('virsh', '-r', '-c', 'qemu:///system', 'destroy', UUID)
  await assert.rejects(
    runCommand(argv, { deadlineMs: 10_000, outputBytesMax: 10_000 }),
    /read.only|forbidden/i,
  )
})

test('a libvirt that hangs costs its deadline, and one that is not there an error', async () => {
  daemon.kill('SIGSTOP')
  try {
    await assert.rejects(
      new Libvirt({ virsh: inside('virsh'), deadlineMs: 300 }).runningDomain(UUID),
      /not done within 300 ms/,
    )
  } finally {
    daemon.kill('SIGCONT')
  }
  await assert.rejects(
    new Libvirt({ uri: 'qemu+unix:///system?socket=/nonexistent' }).runningDomain(UUID),
    /connect/,
  )
  assert.equal((await makeLibvirt().runningDomain(UUID))?.name, NAME)
})
