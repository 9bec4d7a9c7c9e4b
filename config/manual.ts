/**
 * The text of swam.toml(5), Markdown from the schema, as config/example.ts makes the example file from it:
 *   bin/node -e "import('./config/manual.ts').then((m) => process.stdout.write(m.configManual()))"
 */
import { CONFIG_SCHEMA, type Group, isLeaf, type Leaf, PEER_SCHEMA } from './schema.ts'

export function configManual(): string {
  const peers = CONFIG_SCHEMA['peers'] as Leaf
  return `# swam.toml: the configuration of swamd

The file is TOML. \`swam config check\` says what is wrong with it, by key and line. swamd reads it once, at its start:
after a change, \`systemctl restart swamd\` while no migration runs (the hook reads it at every migration). What is left out
has its default; a key that does not exist is an error.

## Keys
${keysOf(CONFIG_SCHEMA, '')}
## Peers
${peers.doc} One table \`[[peers]]\` for each.

${keysOf(PEER_SCHEMA, '')}
## Files
\`/etc/swam/swam.toml\`, which the package makes, with a comment for each key.
`
}

function keysOf(group: Group, prefix: string): string {
  let text = ''
  for (const [key, node] of Object.entries(group)) {
    if (!isLeaf(node)) text += keysOf(node, `${prefix}${key}.`)
    else if (key !== 'peers') text += keyText(`${prefix}${key}`, node)
  }
  return text
}

/** Markdown's own signs in the texts are meant as they stand. */
function keyText(name: string, node: Leaf): string {
  const plain = (text: string): string => text.replaceAll(/[\\*_[\]<>]/g, '\\$&')
  const fallback = node.default === null ? 'Required.' : `Default: \`${JSON.stringify(node.default)}\`.`
  return `\`${name}\`\n\n: ${plain(node.doc)} It is ${plain(node.expected)}. ${fallback}\n\n`
}
