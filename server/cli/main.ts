/**
 * The program `swam`: argv in, exit code out. Everything else is in program.ts.
 */
import { runSwam } from './program.ts'

const output = {
  out: (text: string): void => void process.stdout.write(text),
  err: (text: string): void => void process.stderr.write(text),
}

// A reader that went away (`swam history | head`) is no failure of ours.
process.stdout.on('error', () => process.exit(0))

const exitCode = await runSwam(process.argv.slice(2), process.stdin, output)
// Ended by hand, after all is written: a hook that met its deadline still has work that nobody waits for.
process.stdout.write('', () => process.stderr.write('', () => process.exit(exitCode)))
