/**
 * The text of config/swam.example.toml, written from the schema: each key with its meaning, what it may be and its
 * default. A test compares the two; to renew the file:
 *   bin/node -e "import('./config/example.ts').then((m) => process.stdout.write(m.exampleToml()))"
 * Keys that are required stand with an example value; the peer stands as a comment, because nobody has that peer.
 */
import { CONFIG_SCHEMA, type Group, isLeaf, type Leaf, PEER_SCHEMA } from './schema.ts'

export function exampleToml(): string {
  const lines = [
    '# /etc/swam/swam.toml: the configuration of swamd. `swam config check` says what is wrong with it.',
    '',
  ]
  const groups: [string, Group][] = []
  for (const [key, node] of Object.entries(CONFIG_SCHEMA)) {
    if (!isLeaf(node)) groups.push([key, node])
    else if (key !== 'peers') lines.push(...leafLines(key, node), '')
  }
  for (const [name, group] of groups) {
    lines.push(`[${name}]`)
    for (const [key, node] of Object.entries(group)) if (isLeaf(node)) lines.push(...leafLines(key, node))
    lines.push('')
  }
  lines.push(
    `# ${(CONFIG_SCHEMA['peers'] as Leaf).doc} One table for each; take the "#!" away.`,
    '#! [[peers]]',
  )
  for (const [key, node] of Object.entries(PEER_SCHEMA)) {
    if (isLeaf(node))
      lines.push(...commentLines(node), `#! ${key} = ${tomlValue(node.example ?? node.default)}`)
    else {
      lines.push(`#! [peers.${key}]`)
      for (const [inner, innerNode] of Object.entries(node)) {
        if (!isLeaf(innerNode)) continue
        const value = tomlValue(innerNode.example ?? innerNode.default)
        lines.push(...commentLines(innerNode), `#! ${inner} = ${value}`)
      }
    }
  }
  return `${lines.join('\n')}\n`
}

function leafLines(key: string, node: Leaf): string[] {
  return [...commentLines(node), `${key} = ${tomlValue(node.example ?? node.default)}`]
}

function commentLines(node: Leaf): string[] {
  return [`# ${node.doc}`, `# ${node.default === null ? 'Required' : 'May be'}: ${node.expected}.`]
}

function tomlValue(value: unknown): string {
  if (Array.isArray(value)) return `[${value.map(tomlValue).join(', ')}]`
  return JSON.stringify(value)
}
