/**
 * Numbers and tables for people. Pure. Text that came from outside (guest names, errors) is stripped of control
 * characters, so that no guest's name moves the cursor of an administrator's terminal.
 */

const BYTE_UNITS = ['B', 'KiB', 'MiB', 'GiB', 'TiB', 'PiB'] as const

export function bytesText(bytes: number): string {
  let value = bytes
  let unit = 0
  while (value >= 1024 && unit < BYTE_UNITS.length - 1) {
    value /= 1024
    unit += 1
  }
  // 1023.96 KiB would print as 1024.0 KiB.
  if (unit > 0 && unit < BYTE_UNITS.length - 1 && value >= 1023.95) {
    value /= 1024
    unit += 1
  }
  return unit === 0 ? `${value} B` : `${value.toFixed(1)} ${BYTE_UNITS[unit]}`
}

export function rateText(bytes: number, elapsedMs: number): string {
  if (elapsedMs <= 0) return '-'
  return `${((bytes * 8) / elapsedMs / 1000).toFixed(1)} Mbit/s`
}

export function durationText(ms: number | null): string {
  if (ms === null) return '-'
  if (ms < 1000) return `${Math.round(ms)} ms`
  const seconds = ms / 1000
  if (seconds < 60) return `${seconds.toFixed(1)} s`
  const minutes = Math.floor(seconds / 60)
  if (minutes < 60) return `${minutes} min ${Math.floor(seconds % 60)} s`
  const hours = Math.floor(minutes / 60)
  return hours < 48 ? `${hours} h ${minutes % 60} min` : `${Math.floor(hours / 24)} d ${hours % 24} h`
}

export function percentText(part: number, whole: number): string {
  if (whole <= 0) return '-'
  return `${Math.floor(Math.min(1, part / whole) * 100)} %`
}

/** With a tenth of a percent: what crosses the link may be very little. */
export function shareText(part: number, whole: number): string {
  return whole <= 0 ? '-' : `${((part / whole) * 100).toFixed(1)} %`
}

/** Local time to the second, `2026-01-31 12:00:00`. */
export function timeText(wallMs: number): string {
  const date = new Date(wallMs)
  if (Number.isNaN(date.getTime())) return '-'
  const two = (value: number): string => String(value).padStart(2, '0')
  const day = `${date.getFullYear()}-${two(date.getMonth() + 1)}-${two(date.getDate())}`
  return `${day} ${two(date.getHours())}:${two(date.getMinutes())}:${two(date.getSeconds())}`
}

export function plainText(text: string): string {
  return text.replaceAll(/[\p{Cc}\p{Cf}\u2028\u2029]/gu, '?')
}

/** Columns as wide as their widest cell, two spaces between them; the heads in capitals. */
export function tableText(heads: readonly string[], rows: readonly (readonly string[])[]): string {
  const cells = [heads.map((head) => head.toUpperCase()), ...rows.map((row) => row.map(plainText))]
  const widths = heads.map((_, column) => Math.max(...cells.map((row) => (row[column] ?? '').length)))
  return cells
    .map((row) =>
      row
        .map((cell, column) => cell.padEnd(widths[column] ?? 0))
        .join('  ')
        .trimEnd(),
    )
    .join('\n')
}

/** One line of JSON for `--json`. JSON itself escapes what is below a space, and leaves all else that a terminal obeys. */
export function jsonLine(value: unknown): string {
  const escaped = (character: string): string =>
    character
      .split('')
      .map((unit) => `\\u${unit.charCodeAt(0).toString(16).padStart(4, '0')}`)
      .join('')
  return `${JSON.stringify(value).replaceAll(/[\p{Cc}\p{Cf}\u2028\u2029]/gu, escaped)}\n`
}
