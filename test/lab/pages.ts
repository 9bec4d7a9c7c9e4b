/**
 * The command blocks of the pages that are followed word for word (README.md, docs/operations.md). Each block of `sh` has a line
 * above it that says where its lines are typed, for whoever runs the page; the reader of the page does not see it:
 *   <!-- run on: here -->             at a place: builder, here, far, both (one after the other)
 *   <!-- run on: here; NOTE -->       the runner of the page knows what the note asks
 *   <!-- not run: REASON -->          by nobody but the reader
 */
export const PLACES = ['builder', 'here', 'far', 'both'] as const
export type Place = (typeof PLACES)[number]

export interface CommandBlock {
  /** The heading that it stands under. */
  readonly heading: string
  /** Of its first command, from 1. */
  readonly line: number
  /** `undefined`: not run, for the reason in `note`. */
  readonly place: Place | undefined
  readonly note: string
  readonly commands: readonly string[]
}

/** Throws on a block of commands without such a line, and on one that is only indented, which would be overlooked. */
export function commandBlocks(page: string): CommandBlock[] {
  const blocks: CommandBlock[] = []
  let heading = ''
  let fence: { language: string; line: number; said: string; commands: string[] } | undefined
  let above = ''
  for (const [index, text] of page.split('\n').entries()) {
    const line = index + 1
    if (fence !== undefined) {
      if (text !== '```') fence.commands.push(text)
      else {
        if (fence.language === 'sh') blocks.push(block(heading, fence))
        fence = undefined
      }
    } else if (text.startsWith('```')) {
      fence = { language: text.slice(3), line: line + 1, said: above, commands: [] }
    } else if (/^(?: {4}|\t)\S/.test(text)) {
      throw new Error(`line ${line}: expected commands in a fence (\`\`\`sh), found them indented: ${text}`)
    } else if (/^#+ /.test(text)) heading = text.replace(/^#+ /, '')
    above = text
  }
  if (fence !== undefined) throw new Error(`line ${fence.line}: the fence does not end`)
  return blocks
}

function block(
  heading: string,
  { said, line, commands }: { readonly said: string; readonly line: number; readonly commands: string[] },
): CommandBlock {
  const own = commands.filter((command) => command.trim() !== '')
  const left = /^<!-- not run: (\S.*) -->$/.exec(said)
  if (left !== null) return { heading, line, place: undefined, note: left[1]!, commands: own }
  const [, where, note = ''] = /^<!-- run on: (\w+)(?:; (\S.*))? -->$/.exec(said) ?? []
  const place = PLACES.find((one) => one === where)
  if (place === undefined) {
    throw new Error(`line ${line}: expected a line above the fence that says where it is run, found: ${said}`)
  }
  return { heading, line, place, note, commands: own }
}
