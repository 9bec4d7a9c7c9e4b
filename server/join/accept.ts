/**
 * The far side of `swam peer add`: answers look, do, keep, undo and doctor, one line each. What `do` laid down is taken back when
 * the other side says undo, says nothing for too long, or is gone before it said keep.
 */
import type { Readable } from 'node:stream'
import { loadConfig } from '../../config/load.ts'
import { errorText, ProtocolError, RefusedError } from '../../lib/core/errors.ts'
import { JOIN_LINE_CHARACTERS_MAX, JOIN_NEXT_MS } from '../../lib/core/limits.ts'
import { shortHostName } from '../../lib/host/names.ts'
import { findAddresses } from './addresses.ts'
import { examineJoined } from './examine-joined.ts'
import { factsOf, type HostFacts, peerName } from './facts.ts'
import { Joining } from './joining.ts'
import { JsonLines, lineText } from './lines.ts'
import { reloadText } from './reload.ts'
import { type JoinHost, THIS_HOST } from './this-host.ts'

export interface AcceptOptions {
  readonly configPath: string
  readonly input: Readable
  readonly write: (text: string) => void
  /** The address that the SSH connection comes from. */
  readonly client: string | undefined
  readonly host?: JoinHost
  /** How long the next word may take. */
  readonly nextMs?: number
}

export async function accept(options: AcceptOptions): Promise<void> {
  const { configPath, write, host = THIS_HOST, nextMs = JOIN_NEXT_MS } = options
  const lines = new JsonLines(options.input, 'swam peer add')
  let open: Joining | undefined
  try {
    for (;;) {
      const request = await lines.next(nextMs)
      if (request === undefined) return
      try {
        const { step } = request
        if (step === 'look') write(lineText(await look(request, options)))
        else if (step === 'do') {
          if (open !== undefined) throw new ProtocolError('swam peer add: do came twice')
          const joining = await planned(request, options)
          refuseDifferent(joining.joining, request)
          open = joining.joining
          const done = await open.apply()
          const facts = await host.facts(await loadConfig(configPath), configPath)
          write(lineText({ ok: true, facts, done: shortened(done) }))
        } else if (step === 'keep') {
          const changed = open !== undefined && open.would.length > 0
          open = undefined
          const done = changed ? [await reloadText(await loadConfig(configPath))] : []
          write(lineText({ ok: true, done: shortened(done) }))
        } else if (step === 'undo') {
          const done = (await open?.undo()) ?? []
          open = undefined
          write(lineText({ ok: true, done: shortened(done) }))
        } else if (step === 'doctor') {
          const findings = await examineJoined(configPath, peerName(request['name'], 'swam peer add'))
          write(lineText({ ok: true, findings }))
        } else throw new ProtocolError('swam peer add: expected step look, do, keep, undo or doctor')
      } catch (error) {
        write(lineText({ ok: false, message: errorText(error).split('\n')[0] }))
        if (error instanceof ProtocolError) return
      }
    }
  } finally {
    await open?.undo()
  }
}

async function look(request: Record<string, unknown>, options: AcceptOptions): Promise<object> {
  const { joining, facts, found } = await planned(request, options)
  return {
    ok: true,
    facts,
    addresses: found.addresses,
    notes: shortened(found.notes),
    would: shortened(joining.would),
    differs: shortened(joining.differs),
  }
}

async function planned(
  request: Record<string, unknown>,
  options: AcceptOptions,
): Promise<{ joining: Joining; facts: HostFacts; found: Awaited<ReturnType<typeof findAddresses>> }> {
  const { configPath, client, host = THIS_HOST } = options
  const facts = await host.facts(await loadConfig(configPath), configPath)
  const name = peerName(request['name'], 'swam peer add')
  const theirs = factsOf(request['facts'], 'swam peer add')
  if (theirs.hostKey === facts.hostKey)
    throw new RefusedError('this is the same host (same SSH host key): a host is no peer of itself')
  const found = await findAddresses({
    what: name,
    where: shortHostName(),
    names: [name, ...theirs.names],
    theirs: theirs.addresses,
    ...(client === undefined ? {} : { seen: client }),
  })
  const joining = await Joining.plan({ configPath, name, theirs, addresses: found.addresses, host })
  return { joining, facts, found }
}

export function refuseDifferent(joining: Joining, request: Readonly<Record<string, unknown>>): void {
  if (joining.differs.length === 0 || request['replace'] === true) return
  throw new RefusedError(`it is a peer with other values: ${joining.differs.join('; ')}`)
}

function shortened(lines: readonly string[]): string[] {
  return lines.map((line) => line.replaceAll(/\p{C}+/gu, ' ').slice(0, JOIN_LINE_CHARACTERS_MAX))
}
