/** The limits of the peer channel, in one place. A frame's and a hello's own are in lib/wire. */
import { KIB, MIB } from '../core/units.ts'

/** What one bundle keeps unacknowledged, and what its receiver holds undelivered. */
export const IN_FLIGHT_BYTES_MAX: number = 32 * MIB
/** Bounds the receiver's table of frames that came early. */
export const IN_FLIGHT_FRAMES_MAX: number = 16_384
/** Control frames pass the pacing, but not more than this beyond it. */
export const CONTROL_EXTRA_BYTES: number = 4 * MIB
export const CONTROL_EXTRA_FRAMES: number = 1024
/** What waits in one channel for a far end that does not read: no honest one lets it come to this. */
export const CHANNEL_BACKLOG_BYTES_MAX: number = IN_FLIGHT_BYTES_MAX + 2 * CONTROL_EXTRA_BYTES

export const PING_INTERVAL_MS: number = 5000
export const SILENCE_MS_MAX: number = 15_000
/** How long a bundle that closes waits for its last frames to be acknowledged. */
export const CLOSE_MS_MAX: number = 5000
export const ABORT_REASON_BYTES_MAX: number = KIB

export const DIAL_MS_MAX: number = 15_000
export const PREAMBLE_BYTES_MAX: number = KIB
export const HALF_OPEN_BUNDLES_MAX: number = 16
export const HALF_OPEN_MS_MAX: number = 10_000
export const BUNDLES_MAX: number = 64
export const STDERR_BYTES_MAX: number = 4 * KIB

export const RPC_BYTES_MAX: number = 256 * KIB
export const RPC_CALLS_MAX: number = 1024
export const RPC_TIMEOUT_MS: number = 10_000

export const STREAM_WINDOW_BYTES: number = 4 * MIB
export const STREAM_CHUNK_BYTES_MAX: number = 128 * KIB
export const STREAMS_MAX: number = 256
export const STREAM_META_BYTES_MAX: number = KIB
