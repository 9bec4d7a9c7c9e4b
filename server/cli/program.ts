/**
 * The commands of `swam` and how they are called (commander). Gives an exit code instead of ending the process, so that
 * tests can run it; server/cli/main.ts is the only place that knows argv and ends the process.
 */
import type { Readable } from 'node:stream'
import { Command, CommanderError, Option } from 'commander'
import { ConfigFindingsError, findingText } from '../../config/load.ts'
import { errorText } from '../../lib/core/errors.ts'
import { release } from '../release.ts'
import type { AnalyzeCommandOptions } from './analyze.ts'
import type { CatalogAction } from './catalog.ts'
import { configCheckCommand } from './config-check.ts'
import type { GlobalOptions, Output } from './context.ts'
import { EXIT, exitCodeOf } from './exit-codes.ts'
import { plainText } from './format.ts'
import { historyCommand } from './history.ts'
import { hookCommand } from './hook.ts'
import { addPeerCommands } from './peer-commands.ts'
import type { SalvageAction } from './salvage.ts'
import { statusCommand } from './status.ts'
import type { VerifyCommandOptions } from './verify.ts'

/** `argv` without node and script. */
export async function runSwam(argv: readonly string[], stdin: Readable, output: Output): Promise<number> {
  const { program, exitCode } = swamProgram(stdin, output)
  try {
    await program.parseAsync(argv, { from: 'user' })
    return exitCode()
  } catch (error) {
    // commander has said its own already.
    if (error instanceof ConfigFindingsError) {
      for (const finding of error.findings) output.err(`swam: ${plainText(findingText(finding))}\n`)
    } else if (!(error instanceof CommanderError)) output.err(`swam: ${plainText(errorText(error))}\n`)
    return exitCodeOf(error)
  }
}

/** What commander says of wrong words, with its guess: one line that also says where to look. */
function usageLine(text: string): string {
  const said = text.trim().replace(/^error: /, '')
  return `swam: ${plainText(said.replaceAll(/\s*\n\s*/g, ' '))}: see swam --help\n`
}

/** All commands, also for those who only describe them (completion.ts). `exitCode` is for after a parse without error. */
export function swamProgram(
  stdin: Readable,
  output: Output,
): { readonly program: Command; readonly exitCode: () => number } {
  let exitCode: number = EXIT.done
  const program = new Command('swam')
    .description('Looks at swamd, the daemon that accelerates live migrations of libvirt guests.')
    .version(release())
    .option('--config <file>', 'the daemon of this config (default: /etc/swam/swam.toml)')
    .option('--socket <path>', 'the daemon at this control socket')
    .option('--json', 'print one JSON object')
    .exitOverride()
    .configureOutput({
      writeOut: (text) => output.out(text),
      writeErr: (text) => output.err(text),
      outputError: (text) => output.err(usageLine(text)),
    })
  const settings = (command: Command): GlobalOptions => command.optsWithGlobals<GlobalOptions>()

  program
    .command('status')
    .description('the daemon, its peers, and the migrations that run now')
    .argument('[guest]', 'only the migrations of this guest')
    .action((guest: string | undefined, _options, command: Command) =>
      statusCommand(guest, settings(command), output),
    )
  program
    .command('history')
    .description('every migration, finished or failed')
    .argument('[guest]', 'only those of this guest')
    .action((guest: string | undefined, _options, command: Command) =>
      historyCommand(guest, settings(command), output),
    )
  program
    .command('config')
    .description('the config file')
    .command('check')
    .description('says what is wrong with it')
    .argument('[file]', 'the file (default: that of --config)')
    .action(async (file: string | undefined, _options, command: Command) => {
      exitCode = await configCheckCommand(file, settings(command), output)
    })
  addAnalyzeCommand(program, output)
  addEstimateCommand(program, output)
  addVerifyCommand(program, output, (code) => {
    exitCode = code
  })
  addCatalogCommands(program, output, (code) => {
    exitCode = code
  })
  addSalvageCommands(program, output, (code) => {
    exitCode = code
  })
  addPeerCommands(program, stdin, output, (code) => {
    exitCode = code
  })
  program
    .command('hook', { hidden: true })
    .description("for libvirt's hook script only")
    .argument('<guest>')
    .argument('<operation>')
    .argument('<suboperation>')
    .argument('[extra]')
    .action(
      async (guest: string, operation: string, suboperation: string, _extra, _options, command: Command) => {
        const input = { argv: [guest, operation, suboperation], stdin }
        exitCode = await hookCommand(input, settings(command), output)
      },
    )

  return { program, exitCode: () => exitCode }
}

function addAnalyzeCommand(program: Command, output: Output): void {
  program
    .command('analyze')
    .description('how many bytes of an image would cross the link, and where the others would come from')
    .argument('<file>', 'the image: PATH, raw:PATH or qcow2:PATH')
    .option('--have <image...>', 'images that the far side has, or directories of them')
    .option('--in-place <image>', 'the image that lies at the target path there')
    .option('--backing <image...>', 'files that these qcow2 images stand on, and may be read')
    .addOption(
      new Option('--format <format>', 'of images that are named without one (default: raw)').choices([
        'raw',
        'qcow2',
      ]),
    )
    .action(async (file: string, _options, command: Command) => {
      // Loaded when it is called: the hook is the same program, and virsh waits for it.
      const { analyzeCommand } = await import('./analyze.ts')
      await analyzeCommand(file, command.optsWithGlobals<AnalyzeCommandOptions>(), output)
    })
}

function addEstimateCommand(program: Command, output: Output): void {
  program
    .command('estimate')
    .description(
      'what migrating a running guest to a peer would send: bytes, time, and what the peer has already',
    )
    .argument('<guest>', 'its name or uuid')
    .argument('<peer>', 'its name')
    .action(async (guest: string, peer: string, _options, command: Command) => {
      const { estimateCommand } = await import('./estimate.ts')
      await estimateCommand(guest, peer, command.optsWithGlobals<GlobalOptions>(), output)
    })
}

function addVerifyCommand(program: Command, output: Output, done: (exitCode: number) => void): void {
  program
    .command('verify')
    .description('holds the disks of a guest that is switched off against the proof of its last migration')
    .argument('<guest>', 'its name or uuid')
    .option('--image <target=path...>', 'where the image of a disk lies now, if not where libvirt had it')
    .action(async (guest: string, _options, command: Command) => {
      const { verifyCommand } = await import('./verify.ts')
      done(await verifyCommand(guest, command.optsWithGlobals<VerifyCommandOptions>(), output))
    })
}

function addCatalogCommands(program: Command, output: Output, done: (exitCode: number) => void): void {
  const catalog = program.command('catalog').description("the maps of this host's images")
  const add = (action: CatalogAction, description: string): void => {
    const command = catalog.command(action).description(description)
    if (action === 'add' || action === 'remove') command.argument('<file>', 'the image')
    command.action(async (...words: unknown[]) => {
      const called = words.at(-1) as Command
      const { catalogCommand } = await import('./catalog.ts')
      done(await catalogCommand(action, called.args[0], called.optsWithGlobals<GlobalOptions>(), output))
    })
  }
  add('list', 'each map, and whether its image is still what it was')
  add('stats', 'how many, and how large')
  add('verify', 'reads every image again and compares')
  add('add', 'scans an image now, instead of when the next migration is announced')
  add('remove', 'forgets what is known of an image, which stays as it is')
}

function addSalvageCommands(program: Command, output: Output, done: (exitCode: number) => void): void {
  const salvage = program
    .command('salvage')
    .description('what is kept of migrations that failed, for the next attempt')
  const add = (action: SalvageAction, description: string): void => {
    const command = salvage.command(action).description(description)
    if (action === 'remove') command.argument('[uuid]', 'of this guest only')
    command.action(async (...words: unknown[]) => {
      const called = words.at(-1) as Command
      const { salvageCommand } = await import('./salvage.ts')
      done(await salvageCommand(action, called.args[0], called.optsWithGlobals<GlobalOptions>(), output))
    })
  }
  add('list', 'each image, its size, and for how long it has been kept')
  add('sweep', 'removes what has had its time; systemd does it once a day')
  add('remove', 'removes it now')
}
