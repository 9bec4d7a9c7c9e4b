/**
 * Which maps are kept (limits.catalogDays, limits.catalogGiB), as a choice from what is known of each image: pure. What is too old
 * goes; of the rest those stay that were touched last (the image was changed or used, or its map made), as far as there is room.
 *
 * An image that is not chosen gets no map, so the choice must not change by itself: an image that has none comes before one that has
 * only if it was touched a day later (else guests that run, which write all the time, would take turns), and it must leave a
 * sixteenth of the room free (else maps that grow a little would make another come and go). Whoever makes a map is touched by that,
 * and whoever loses it is not: so without news from outside the choice comes to rest.
 */
import { CATALOG_MAPS_MAX, CATALOG_TURN_MS } from '../core/limits.ts'

export interface Keepable {
  readonly name: string
  /** Of its map, or what one would take. */
  readonly bytes: number
  /** There is a map. */
  readonly mapped: boolean
  /** A migration uses it, or it is being made. */
  readonly inUse: boolean
  /** When the image was changed or used last, or its map made. */
  readonly touchedAtMs: number
  /** From when on its age counts. */
  readonly agesFromMs: number
}

export interface MapRoom {
  readonly bytesMax: number
  readonly ageMsMax: number
  readonly nowMs: number
  /** The same of CATALOG_MAPS_MAX. */
  readonly mapsMax?: number
}

/** Of the room, what a map that is not there yet may fill. */
const NEW_SHARE = 15 / 16

/** Those that are to have a map; those in use keep theirs until they are not. */
export function chooseMaps<Map extends Keepable>(maps: readonly Map[], room: MapRoom): Set<Map> {
  const { bytesMax, ageMsMax, nowMs, mapsMax = CATALOG_MAPS_MAX } = room
  const chosen = new Set(maps.filter(({ mapped, inUse }) => mapped && inUse))
  let bytes = 0
  for (const map of chosen) bytes += map.bytes
  for (const map of ranked(maps)) {
    if (chosen.has(map) || nowMs - map.agesFromMs > ageMsMax || chosen.size >= mapsMax) continue
    const most = map.mapped ? bytesMax : bytesMax * NEW_SHARE
    // None at all is meant: not even an empty one.
    if (bytesMax === 0 || bytes + map.bytes > most) continue
    chosen.add(map)
    bytes += map.bytes
  }
  return chosen
}

function ranked<Map extends Keepable>(maps: readonly Map[]): Map[] {
  const rank = ({ touchedAtMs, mapped }: Map): number => touchedAtMs + (mapped ? CATALOG_TURN_MS : 0)
  return maps.toSorted((one, other) => rank(other) - rank(one) || (one.name < other.name ? -1 : 1))
}
