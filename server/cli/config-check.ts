/** `swam config check [FILE]`: says all that is wrong with a config, one line each, and exits 6 when anything is. */
import { checkConfigText, DEFAULT_CONFIG_PATH, findingText, readConfigText } from '../../config/load.ts'
import type { GlobalOptions, Output } from './context.ts'
import { EXIT } from './exit-codes.ts'
import { jsonLine, plainText } from './format.ts'

/** Gives the exit code. Throws ConfigError when the file cannot be read. */
export async function configCheckCommand(
  file: string | undefined,
  options: GlobalOptions,
  output: Output,
): Promise<number> {
  const path = file ?? options.config ?? DEFAULT_CONFIG_PATH
  const findings = checkConfigText(await readConfigText(path), path)
  if (options.json === true) {
    output.out(jsonLine({ version: 1, path, ok: findings.length === 0, findings }))
  } else if (findings.length === 0) output.out(`${path}: ok\n`)
  else for (const finding of findings) output.out(`${plainText(findingText(finding))}\n`)
  return findings.length === 0 ? EXIT.done : EXIT.badConfig
}
