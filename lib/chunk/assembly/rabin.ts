/**
 * The hot loop of content-defined chunking: a Rabin fingerprint over a sliding window of 48 bytes, modulo the
 * irreducible polynomial of degree 53 that the npm package rabin-wasm uses, cut for cut equal to that package.
 *
 * Three ideas make it several times faster. The fingerprint at a place depends on the 48 bytes before it only, so
 * nothing is computed for the first (minimum - 48) bytes of a chunk, where no cut may lie. For the same reason four
 * neighbouring stretches are searched side by side: their table look-ups do not wait for each other. And the byte that
 * leaves the window is looked up in a table that is already shifted, so that it is off the critical path.
 *
 * There is no allocation and no state between calls: the caller writes bytes at `input()` and asks for the next cut.
 */

const POLYNOMIAL: u64 = 0x3da3358b4dc173
const DEGREE: i32 = 53
const WINDOW_BYTES: usize = 48
const MASK: u64 = 0xffff

/** Bytes of one of the four stretches that are searched side by side. */
const LANE_BYTES: usize = 1024
const INPUT_BYTES: i32 = 1 << 20
const NO_CUT: usize = usize.MAX_VALUE

/** MOD[t]: what clears the bits t above the degree and adds their remainder. */
const MOD: usize = memory.data(256 * 8, 64)
/** OUT[b]: b * x^(8 * 48) mod P, what the byte b that leaves the window still adds after the next shift. */
const OUT: usize = memory.data(256 * 8, 64)
const INPUT: usize = memory.data(INPUT_BYTES, 4096)

function remainder(value: u64): u64 {
  let rest = value
  for (let bit = 63; bit >= DEGREE; bit--) {
    if (rest & (<u64>1 << bit)) rest ^= POLYNOMIAL << (bit - DEGREE)
  }
  return rest
}

function fillTables(): void {
  for (let value: u64 = 0; value < 256; value++) {
    const above = value << DEGREE
    store<u64>(MOD + (<usize>value << 3), remainder(above) | above)
    let leaving = value
    for (let i: usize = 0; i < WINDOW_BYTES; i++) leaving = remainder(leaving << 8)
    store<u64>(OUT + (<usize>value << 3), leaving)
  }
}

fillTables()

// @ts-ignore: decorator
@inline
function append(digest: u64, entering: u64): u64 {
  return (digest << 8) ^ entering ^ load<u64>(MOD + (<usize>(digest >> (DEGREE - 8)) << 3))
}

// @ts-ignore: decorator
@inline
function slide(digest: u64, entering: u64, leaving: usize): u64 {
  return append(digest, entering ^ load<u64>(OUT + (leaving << 3)))
}

/** The fingerprint of the 48 bytes before `end`. */
function warm(end: usize): u64 {
  let digest: u64 = 0
  for (let at = end - WINDOW_BYTES; at < end; at++) digest = append(digest, load<u8>(at))
  return digest
}

export function input(): usize {
  return INPUT
}

export function inputBytes(): i32 {
  return INPUT_BYTES
}

/**
 * The length of the chunk that begins at `start`, of which `length` bytes are there: the first count in
 * [minimum, maximum] after which the fingerprint's low 16 bits are zero, else the smaller of `maximum` and `length`.
 * `minimum` must be at least 48.
 */
export function nextCut(start: usize, length: usize, minimum: usize, maximum: usize): usize {
  const limit = length < maximum ? length : maximum
  if (limit <= minimum) return limit

  // `at` is the place just after the last byte that the digest covers.
  let at = start + minimum
  const end = start + limit
  let digest = warm(at)
  if ((digest & MASK) == 0) return minimum

  while (at + 4 * LANE_BYTES <= end) {
    let digest0 = digest
    let digest1: u64 = 0
    let digest2: u64 = 0
    let digest3: u64 = 0
    for (let p = at - WINDOW_BYTES; p < at; p++) {
      digest1 = append(digest1, load<u8>(p, LANE_BYTES))
      digest2 = append(digest2, load<u8>(p, 2 * LANE_BYTES))
      digest3 = append(digest3, load<u8>(p, 3 * LANE_BYTES))
    }

    let found: usize = NO_CUT
    const laneEnd = at + LANE_BYTES
    // `p` runs 48 bytes behind, so that every offset from it is a constant that is not negative.
    for (let p = at - WINDOW_BYTES, last = laneEnd - WINDOW_BYTES; p < last; p++) {
      digest0 = slide(digest0, load<u8>(p, WINDOW_BYTES), load<u8>(p))
      if ((digest0 & MASK) == 0) return p + WINDOW_BYTES + 1 - start
      digest1 = slide(digest1, load<u8>(p, LANE_BYTES + WINDOW_BYTES), load<u8>(p, LANE_BYTES))
      if ((digest1 & MASK) == 0) found = min(found, p + LANE_BYTES)
      digest2 = slide(digest2, load<u8>(p, 2 * LANE_BYTES + WINDOW_BYTES), load<u8>(p, 2 * LANE_BYTES))
      if ((digest2 & MASK) == 0) found = min(found, p + 2 * LANE_BYTES)
      digest3 = slide(digest3, load<u8>(p, 3 * LANE_BYTES + WINDOW_BYTES), load<u8>(p, 3 * LANE_BYTES))
      if ((digest3 & MASK) == 0) found = min(found, p + 3 * LANE_BYTES)
    }
    if (found != NO_CUT) return found + WINDOW_BYTES + 1 - start
    digest = digest3
    at += 4 * LANE_BYTES
  }

  for (; at < end; at++) {
    digest = slide(digest, load<u8>(at), load<u8>(at - WINDOW_BYTES))
    if ((digest & MASK) == 0) return at + 1 - start
  }
  return limit
}
