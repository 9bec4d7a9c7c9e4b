/**
 * The lab by hand: `test/lab/lab up`, `guest`, `start`, `migrate`, `virsh HOST …`, `down`. A thin layer over lab.ts; the
 * state between calls is the lab's own directory, so calls from several terminals meet in one lab.
 */
import { spawn } from 'node:child_process'
import { parseArgs } from 'node:util'
import { errorText } from '../../lib/core/errors.ts'
import { guestKernel } from './kernel.ts'
import { Lab, type LabOptions, labDown } from './lab.ts'
import { HOST_NAMES, type HostName } from './state.ts'

const USAGE = `usage: test/lab/lab COMMAND [options]
  up                      two hosts and the link; replaces a lab of the same name
     --rtt-ms N --mbit N --loss P   round trip, rate each way, share of packets lost (default 10, 1000, 0)
     --hosts FAMILY       4, 6 or both: the addresses of the names hosta and hostb (default 4)
     --release NAME       Debian release of the hosts (default: this machine's)
     --swam               user swam, keys, config, hook and programs
  guest                   fetch the tiny guest's kernel and build its initramfs
  start [HOST]            start the tiny guest (default hosta)
  migrate [FROM TO] [-- ARGS]   virsh migrate --live --copy-storage-all (default hosta hostb)
  swamd HOST start|stop   the daemon of a host
  wan stats|reset|set     the link; set takes --rtt-ms --mbit --loss
  virsh HOST ARGS…        virsh on a host;  exec HOST COMMAND…  any command there;  shell HOST
  down                    end it and remove its directory
  --name NAME             labs of different names live side by side (default lab)
`

function usage(message: string): never {
  process.stderr.write(`lab: ${message}\n${USAGE}`)
  process.exit(2)
}

function hostName(text: string | undefined, fallback?: HostName): HostName {
  const name = HOST_NAMES.find((each) => each === (text ?? fallback))
  return name ?? usage(`expected hosta or hostb, got ${text ?? 'nothing'}`)
}

function number(name: string, text: string | undefined): number | undefined {
  if (text === undefined) return undefined
  const value = Number(text)
  return Number.isFinite(value) && value >= 0 ? value : usage(`--${name}: expected a number, got ${text}`)
}

async function inherit(command: readonly string[]): Promise<number> {
  return await new Promise((resolve, reject) => {
    const child = spawn(command[0]!, command.slice(1), { stdio: 'inherit' })
    child.once('error', reject)
    child.once('close', (code) => resolve(code ?? 1))
  })
}

async function main(argv: readonly string[]): Promise<number> {
  const command = argv[0] ?? usage('expected a command')
  // What follows virsh, exec and shell belongs to them, but for --name right behind the command.
  const raw = ['virsh', 'exec', 'shell'].includes(command)
  const named = raw && argv[1] === '--name'
  const { values, positionals } = parseArgs({
    args: raw ? (named ? argv.slice(1, 3) : []) : argv.slice(1),
    allowPositionals: true,
    options: {
      name: { type: 'string', default: process.env['SWAM_LAB'] ?? 'lab' },
      'rtt-ms': { type: 'string' },
      mbit: { type: 'string' },
      loss: { type: 'string' },
      hosts: { type: 'string' },
      release: { type: 'string' },
      swam: { type: 'boolean', default: false },
    },
  })
  const words = raw ? argv.slice(named ? 3 : 1) : positionals
  const link = {
    ...(values['rtt-ms'] === undefined ? {} : { rttMs: number('rtt-ms', values['rtt-ms'])! }),
    ...(values.mbit === undefined ? {} : { mbit: number('mbit', values.mbit)! }),
    ...(values.loss === undefined ? {} : { loss: number('loss', values.loss)! }),
  }
  const out = (text: string): void => void process.stdout.write(`${text}\n`)
  if (command === 'down') {
    await labDown(values.name)
    return 0
  }
  if (command === 'up') {
    const family = values.hosts ?? '4'
    if (!['4', '6', 'both'].includes(family)) usage(`--hosts: expected 4, 6 or both, got ${family}`)
    const ipFamily = (family === 'both' ? 'both' : Number(family)) as LabOptions['ipFamily'] & {}
    const release = values.release === undefined ? {} : { release: values.release }
    const lab = await Lab.up({
      name: values.name,
      ...link,
      ...release,
      ipFamily,
      swam: values.swam,
      detached: true,
    })
    out(`${lab.name} is up: ${lab.dir}`)
    return 0
  }
  if (command === 'guest') {
    const files = await guestKernel()
    out(`${files.kernel}\n${files.initrd}`)
    return 0
  }
  const lab = Lab.attach(values.name)
  const tiny = lab.tinyGuest()
  switch (command) {
    case 'start': {
      await tiny.create(hostName(words[0], 'hosta'))
      await tiny.waitBoot()
      out(`${tiny.name} runs, records durable: ${await tiny.waitProgress(1)}`)
      return 0
    }
    case 'migrate': {
      const at = words.findIndex((word) => word.startsWith('-'))
      const places = at < 0 ? words : words.slice(0, at)
      const args = at < 0 ? [] : words.slice(at)
      const from = hostName(places[0], 'hosta')
      const to = hostName(places[1], from === 'hosta' ? 'hostb' : 'hosta')
      await lab.wan.reset()
      const done = await lab.migrate(tiny, from, to, { args })
      if (!done.ok) {
        process.stderr.write(`${done.stderr}\n`)
        return 1
      }
      await tiny.waitProgress(1)
      const { total } = await lab.wan.stats()
      const downtime = await tiny.downtimeMs(done.startedAt, lab.now())
      out(`${from} -> ${to}: ${done.totalMs.toFixed(0)} ms, downtime ${downtime.toFixed(1)} ms`)
      out(`IP bytes a->b ${total.bytesAB}, b->a ${total.bytesBA}; records durable: ${tiny.durable()}`)
      return 0
    }
    case 'swamd': {
      const host = lab.host(hostName(words[0]))
      if (words[1] === 'start') await host.startSwamd()
      else if (words[1] === 'stop') await host.stopSwamd()
      else usage('swamd HOST start|stop')
      return 0
    }
    case 'wan': {
      if (words[0] === 'stats') out(JSON.stringify(await lab.wan.stats(), null, 1))
      else if (words[0] === 'reset') await lab.wan.reset()
      else if (words[0] === 'set') await lab.wan.set(link)
      else usage('wan stats|reset|set')
      return 0
    }
    case 'virsh': {
      return await inherit([
        ...lab.host(hostName(words[0])).enter(),
        'virsh',
        '-c',
        'qemu:///system',
        ...words.slice(1),
      ])
    }
    case 'exec':
      return await inherit([...lab.host(hostName(words[0])).enter(), ...words.slice(1)])
    case 'shell':
      return await inherit([...lab.host(hostName(words[0])).enter(), '/bin/bash', '-i'])
    default:
      return usage(`unknown command ${command}`)
  }
}

try {
  process.exitCode = await main(process.argv.slice(2))
} catch (error) {
  process.stderr.write(`lab: ${errorText(error)}\n`)
  process.exitCode = 1
}
