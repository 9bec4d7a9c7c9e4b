/**
 * Bash completion of `swam`, written from the commander program when the package is built: a new command appears by
 * itself. Options that take a value complete to files; arguments to what they are called: a file, a guest that libvirt knows,
 * a peer of the config. Hidden commands are not offered.
 *   bin/node -e "import('./server/cli/completion.ts').then((m) => process.stdout.write(m.bashCompletion()))"
 */
import { Readable } from 'node:stream'
import type { Command, Option } from 'commander'
import { swamProgram } from './program.ts'

export interface Completion {
  readonly commands: readonly string[]
  readonly options: readonly string[]
  /** What its arguments are called. */
  readonly arguments: readonly string[]
}

/** What the shell runs for the arguments of such a name. bash's compgen expands the words: a name may hold no shell. */
const WORDS: Readonly<Record<string, string>> = {
  guest: "virsh -q -r list --all --name 2>/dev/null | grep -xE '[A-Za-z0-9._-]+'",
  peer: `sed -n 's/^name = "\\([A-Za-z0-9._-]*\\)"$/\\1/p' /etc/swam/swam.toml 2>/dev/null`,
}

/** What may follow, by the words of the command before it: `''`, `config`, `config check`. */
export function completionTable(): Map<string, Completion> {
  const table = new Map<string, Completion>()
  for (const { path, command, options } of commandsOf(root(), '', [])) {
    const commands = visibleCommands(command).map((inner) => inner.name())
    const names = command.registeredArguments.map((argument) => argument.name())
    table.set(path, { commands, options: options.map(optionName), arguments: names })
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
  const cases = [...table].flatMap(([path, { commands, options, arguments: names }]) => {
    const first = `    '${path}') commands='${commands.join(' ')}' options='${options.join(' ')}' argument='${names[0] ?? ''}' ;;`
    // What was typed before it stands behind the command; the first case that fits counts.
    const third = `    '${path} '*' '*) options='${options.join(' ')}' ;;`
    const second = `    '${path} '*) options='${options.join(' ')}' argument='${names[1]}' ;;`
    return names.length < 2 ? [first] : [first, third, second]
  })
  const words = Object.entries(WORDS).map(
    ([name, command]) =>
      `  elif [[ $argument == ${name} ]]; then\n    mapfile -t COMPREPLY < <(compgen -W "$(${command})" -- "$current")`,
  )
  return `# bash completion for swam; made from its commands by server/cli/completion.ts
_swam() {
  local current=\${COMP_WORDS[COMP_CWORD]} path='' commands='' options='' argument='' index word
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
${words.join('\n')}
  elif [[ $argument == file ]]; then
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
