/**
 * Bash completion of `swam`, written from the commander program when the package is built: a new command appears by
 * itself. Options that take a value, and arguments, complete to files; hidden commands are not offered.
 *   bin/node -e "import('./server/cli/completion.ts').then((m) => process.stdout.write(m.bashCompletion()))"
 */
import { Readable } from 'node:stream'
import type { Command, Option } from 'commander'
import { swamProgram } from './program.ts'

export interface Completion {
  readonly commands: readonly string[]
  readonly options: readonly string[]
  /** It takes arguments. */
  readonly files: boolean
}

/** What may follow, by the words of the command before it: `''`, `config`, `config check`. */
export function completionTable(): Map<string, Completion> {
  const table = new Map<string, Completion>()
  for (const { path, command, options } of commandsOf(root(), '', [])) {
    const commands = visibleCommands(command).map((inner) => inner.name())
    const files = command.registeredArguments.length > 0
    table.set(path, { commands, options: options.map(optionName), files })
  }
  return table
}

export function bashCompletion(): string {
  const table = completionTable()
  const valued = new Set(
    [...commandsOf(root(), '', [])].flatMap(({ options }) =>
      options.filter((option) => option.required || option.optional).map(optionName),
    ),
  )
  const cases = [...table].map(
    ([path, { commands, options, files }]) =>
      `    '${path}') commands='${commands.join(' ')}' options='${options.join(' ')}'${files ? ' files=1' : ''} ;;`,
  )
  return `# bash completion for swam; made from its commands by server/cli/completion.ts
_swam() {
  local current=\${COMP_WORDS[COMP_CWORD]} path='' commands='' options='' files='' index word
  case \${COMP_WORDS[COMP_CWORD - 1]} in
    ${[...valued].join(' | ')})
      compopt -o filenames
      mapfile -t COMPREPLY < <(compgen -f -- "$current")
      return
      ;;
  esac
  for ((index = 1; index < COMP_CWORD; index++)); do
    word=\${COMP_WORDS[index]}
    case $word in
      ${[...valued].join(' | ')}) ((index++)) ;;
      -*) ;;
      *) path+=\${path:+ }$word ;;
    esac
  done
  case $path in
${cases.join('\n')}
  esac
  if [[ $current == -* ]]; then
    mapfile -t COMPREPLY < <(compgen -W "$options" -- "$current")
  elif [[ -n $commands ]]; then
    mapfile -t COMPREPLY < <(compgen -W "$commands" -- "$current")
  elif [[ -n $files ]]; then
    compopt -o filenames
    mapfile -t COMPREPLY < <(compgen -f -- "$current")
  fi
}
complete -F _swam swam
`
}

function root(): Command {
  const none = (): void => {}
  return swamProgram(Readable.from([]), { out: none, err: none }).program
}

interface Found {
  readonly path: string
  readonly command: Command
  /** Its own and those of the commands above it. */
  readonly options: readonly Option[]
}

function* commandsOf(command: Command, path: string, above: readonly Option[]): Generator<Found> {
  const options = [...above, ...command.options.filter((option) => !option.hidden)]
  yield { path, command, options }
  for (const inner of visibleCommands(command)) {
    yield* commandsOf(inner, path === '' ? inner.name() : `${path} ${inner.name()}`, options)
  }
}

/** With `help`, which commander adds where there are commands below. */
function visibleCommands(command: Command): readonly Command[] {
  return command.createHelp().visibleCommands(command)
}

function optionName(option: Option): string {
  return option.long ?? option.short ?? ''
}
