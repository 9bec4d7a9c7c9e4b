/** How the commands below `swam peer`, and `swam doctor`, are called. */
import type { Readable } from 'node:stream'
import type { Command } from 'commander'
import type { GlobalOptions, Output } from './context.ts'
import type { DoctorOptions } from './doctor.ts'
import type { PeerAddOptions } from './peer-add.ts'

// Loaded when they are called: the hook is the same program, and virsh waits for it.
const commands = async (): Promise<typeof import('./peer.ts')> => await import('./peer.ts')

export function addPeerCommands(
  program: Command,
  stdin: Readable,
  output: Output,
  exit: (code: number) => void,
): void {
  const settings = <T extends GlobalOptions>(command: Command): T => command.optsWithGlobals<T>()
  const peer = program.command('peer').description('the hosts that migrations go to and come from')
  peer
    .command('add')
    .description('makes this host and that one peers of each other, over your own SSH')
    .argument('<name>', 'what the other host is called here')
    .argument('<user@host>', 'how you reach it with ssh: root, or somebody who may use sudo')
    .option('--dry-run', 'say what would be done, and change nothing')
    .option('--replace', 'replace a peer of that name that has other values')
    .option('-p, --port <port>', 'the port of your SSH connection')
    .option('--name-here <name>', 'what this host is called there (default: its host name)')
    .action(async (name: string, target: string, _options, command: Command) => {
      const { peerAddCommand } = await import('./peer-add.ts')
      await peerAddCommand(name, target, settings<PeerAddOptions>(command), output)
    })
  peer
    .command('list')
    .description('the peers of the config, and how they are')
    .action(async (_options, command: Command) =>
      (await commands()).peerListCommand(settings(command), output),
    )
  peer
    .command('test')
    .description('round trip and throughput to a peer, both ways, with a verified digest')
    .argument('<peer>', 'its name')
    .action(async (name: string, _options, command: Command) =>
      exit(await (await commands()).peerTestCommand(name, settings(command), output)),
    )
  peer
    .command('remove')
    .description('takes a peer away: its table in the config and its key')
    .argument('<peer>', 'its name')
    .action(async (name: string, _options, command: Command) =>
      (await commands()).peerRemoveCommand(name, settings(command), output),
    )
  peer
    .command('accept', { hidden: true })
    .description('the far side of peer add')
    .action(async (_options, command: Command) =>
      (await commands()).peerAcceptCommand(stdin, settings(command), output),
    )
  program
    .command('doctor')
    .description('what is not as it should be on this host, and the commands that mend it')
    .option('--peer <name>', 'also at that peer (or user@host), over your own SSH')
    .action(async (_options, command: Command) => {
      const { doctorCommand } = await import('./doctor.ts')
      exit(await doctorCommand(settings<DoctorOptions>(command), output))
    })
}
