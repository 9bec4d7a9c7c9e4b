/**
 * Under which addresses the other host is reached from here: what its names resolve to, of the addresses that it has.
 * What resolves to something else is left out and said, because SWAM would catch connections to a stranger.
 */
import { RefusedError } from '../../lib/core/errors.ts'
import { JOIN_NOTES_MAX, PEER_ADDRESSES_MAX } from '../../lib/core/limits.ts'
import { addressesOf, inOrder, plainAddress } from '../../lib/host/names.ts'

export interface Found {
  readonly addresses: readonly string[]
  readonly notes: readonly string[]
}

export interface Sought {
  /** In words, for messages. */
  readonly what: string
  readonly where: string
  readonly names: readonly string[]
  /** Of the other host's interfaces. */
  readonly theirs: readonly string[]
  /** Where it was seen to come from, if that is known. */
  readonly seen?: string
}

export async function findAddresses(
  sought: Sought,
  resolve: (name: string) => Promise<string[]> = addressesOf,
): Promise<Found> {
  const { what, where, theirs } = sought
  const names = [...new Set(sought.names)]
  const own = new Set(theirs.map(plainAddress))
  const notes: string[] = []
  const good: string[] = []
  const answers = await Promise.all(names.map(async (name) => [name, await resolve(name)] as const))
  for (const [name, addresses] of answers) {
    const foreign = addresses.filter((address) => !own.has(address))
    if (foreign.length > 0) {
      notes.push(`left out: ${name} is ${foreign.join(', ')} at ${where}, which is no address of ${what}`)
    }
    good.push(...addresses.filter((address) => own.has(address)))
  }
  const seen = plainAddress(sought.seen ?? '')
  if (good.length === 0 && own.has(seen)) {
    notes.push(`${names.join(', ')}: no address at ${where}; taken: ${seen}, where it was seen to come from`)
    good.push(seen)
  }
  if (good.length === 0) {
    throw new RefusedError(
      `no name of ${what} (${names.join(', ')}) resolves to one of its addresses at ${where}: add it to DNS or to /etc/hosts there`,
    )
  }
  return { addresses: inOrder(good).slice(0, PEER_ADDRESSES_MAX), notes: notes.slice(0, JOIN_NOTES_MAX) }
}
