/** The limits of `swam estimate`, in the form and by the rules of limits.ts. */
import { MIB } from './units.ts'

// ---- Estimate --------------------------------------------------------------------------------------------------

/** One estimate, at either end: an image without a map is read whole, which takes minutes for 100 GiB. */
export const ESTIMATE_MS: number = 600_000
/** One call of an estimate. The first one waits for maps to be read at the far side. */
export const ESTIMATE_CALL_MS: number = 20_000
/** How long the far side waits for its images to be known: those with maps are in seconds, those without are not waited for. */
export const ESTIMATE_SCAN_WAIT_MS: number = 5_000
/** How often it looks meanwhile. */
export const ESTIMATE_SCAN_ASK_MS: number = 50
/** Estimates that are answered at once, over all peers, of each of which it is one. */
export const ESTIMATES_MAX: number = 4
/** Estimates that one peer may begin in a minute, as many as tests of the link: each looks for images that changed. */
export const ESTIMATE_STARTS_MAX: number = 6
/** The minute in which these are counted. */
export const ESTIMATE_STARTS_MS: number = 60_000
/** Chunks that one call asks about, 17 bytes each: some 90 KiB as JSON, and some ms of look-ups. */
export const ESTIMATE_CALL_CHUNKS_MAX: number = 4096
/** Blocks that one call asks about, 8 bytes each and 7 for each run of them. */
export const ESTIMATE_CALL_BLOCKS_MAX: number = 8192
/** Calls of one estimate that are not answered yet: the link's round trips are not waited for one by one. */
export const ESTIMATE_CALLS_AT_ONCE_MAX: number = 2
/** Chunks that one estimate may ask about, 64 GiB of data and 24 MB on the link; of larger disks not all are asked about. */
export const ESTIMATE_CHUNKS_MAX: number = 1024 * 1024
/** Blocks that one estimate may ask about: of each of eight disks those of the chunks below, of each of more disks fewer. */
export const ESTIMATE_BLOCKS_MAX: number = 4 * 1024 * 1024
/** Chunks of a disk that the far side lacks and that are looked at block by block, spread over it: half a GiB, some 4 MiB of hints. */
export const ESTIMATE_SAMPLE_CHUNKS_MAX: number = 8192
/** Bytes of a disk that are compressed to see how much that gives: half a second. Of more than eight disks less each. */
export const ESTIMATE_SAMPLE_BYTES_MAX: number = 64 * MIB
/** Parts of a disk's map between the thread that reads it and the one that asks about it, some 700 KiB each. */
export const ESTIMATE_PIECES_MAX: number = 4
