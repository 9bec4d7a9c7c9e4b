/** What the doctor says: one thing that is not as it should be, why that matters, and the command that mends it. */
export interface Finding {
  /** Stays the same between releases: `hook-missing`. */
  readonly id: string
  /** error: migrations fail, or are not accelerated. warning: they may, or something else suffers. */
  readonly level: 'error' | 'warning'
  readonly what: string
  readonly why: string
  /** For a shell of root. */
  readonly mend: string
}

/** For a shell: the word as it is. */
export function quoted(word: string): string {
  return /^[A-Za-z0-9_.,:/@%+=-]+$/.test(word) ? word : `'${word.replaceAll("'", "'\\''")}'`
}

/** Puts LINE in the place of that line (from 1) of a file. Neither holds a quote or a backslash. */
export function lineReplaced(file: string, line: number, text: string): string {
  return `sed -i '${line}c\\${text}' ${quoted(file)}`
}
