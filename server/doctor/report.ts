/** The findings of a far host, which are a stranger's words until they are looked at. Pure. */
import { ProtocolError } from '../../lib/core/errors.ts'
import { DOCTOR_FINDINGS_MAX, DOCTOR_TEXT_CHARACTERS_MAX } from '../../lib/core/limits.ts'
import type { Finding } from './finding.ts'

/** Of what `swam doctor --json` printed there, after whatever the login said first. */
export function reportOf(printed: string, where: string): readonly Finding[] {
  const line = printed.split('\n').find((one) => one.startsWith('{"version":'))
  let value: unknown
  try {
    value = JSON.parse(line ?? '')
  } catch {
    throw new ProtocolError(`${where}: swam doctor there printed no report`)
  }
  const { version, findings } = value as Record<string, unknown>
  if (version !== 1) throw new ProtocolError(`${where}: expected a report of version 1`)
  return findingsOf(findings, where)
}

export function findingsOf(value: unknown, where: string): readonly Finding[] {
  if (!Array.isArray(value) || value.length > DOCTOR_FINDINGS_MAX) {
    throw new ProtocolError(`${where}: expected at most ${DOCTOR_FINDINGS_MAX} findings`)
  }
  return value.map((one: unknown) => {
    const fields = (typeof one === 'object' && one !== null ? one : {}) as Record<string, unknown>
    const text = (key: string): string => {
      const found = fields[key]
      if (typeof found !== 'string') throw new ProtocolError(`${where}: a finding without ${key}`)
      return found.slice(0, DOCTOR_TEXT_CHARACTERS_MAX)
    }
    const level = fields['level'] === 'error' ? 'error' : 'warning'
    return { id: text('id'), level, what: text('what'), why: text('why'), mend: text('mend') }
  })
}
