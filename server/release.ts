/** The version of this SWAM: that of package.json, which lies beside the code in the tree and in the package. */
import { readFileSync } from 'node:fs'

export function release(): string {
  const text = readFileSync(new URL('../package.json', import.meta.url), 'utf8')
  const { version } = JSON.parse(text) as { version: string }
  return version
}
