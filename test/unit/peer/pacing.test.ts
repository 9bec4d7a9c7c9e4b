/**
 * The pacing against simulated links, in simulated time: a queue with a rate, a delay there, and acks that come back
 * after the delay. What counts is how full the link is kept and how long its queue gets.
 */
import assert from 'node:assert/strict'
import { test } from 'node:test'
import { KIB, MIB } from '../../../lib/core/units.ts'
import { Pacing } from '../../../lib/peer/pacing.ts'

interface Step {
  readonly ms: number
  readonly queueMs: number
  readonly inFlightBytes: number
  readonly deliveredBytes: number
}

class SimulatedLink {
  now = 0
  readonly pacing: Pacing
  readonly #rttMs: number
  #bytesPerMs: number
  #freeAt = 0
  #sentBytes = 0
  #delivered = 0
  readonly #acks: { at: number; delivered: number }[] = []

  constructor(options: { readonly mbit: number; readonly rttMs: number }) {
    this.#rttMs = options.rttMs
    this.#bytesPerMs = (options.mbit * 1e6) / 8 / 1000
    this.pacing = new Pacing({ clock: () => this.now })
    // As a bundle does: the first PING comes back before there is any load.
    this.now = options.rttMs
    this.pacing.roundTrip(options.rttMs)
  }

  set mbit(mbit: number) {
    this.#bytesPerMs = (mbit * 1e6) / 8 / 1000
  }

  get deliveredBytes(): number {
    return this.#delivered
  }

  /** Runs until `until`; `supply` says how many bytes there are to send, by the time. */
  run(until: number, frameBytes: number, supply: (now: number) => number = () => Infinity): Step[] {
    const steps: Step[] = []
    while (this.now < until) {
      while (this.pacing.open && this.#sentBytes + frameBytes <= supply(this.now)) this.#send(frameBytes)
      if (this.pacing.open) this.pacing.idle()
      const ack = this.#acks[0]
      const idleAt = this.now + 1
      if (ack !== undefined && ack.at <= Math.max(idleAt, this.now)) {
        this.#acks.shift()
        this.now = Math.max(this.now, ack.at)
        this.#delivered = ack.delivered
        assert.equal(this.pacing.acknowledged(ack.delivered), true)
      } else {
        this.now = idleAt
      }
      steps.push({
        ms: this.now,
        queueMs: Math.max(0, this.#freeAt - this.now),
        inFlightBytes: this.pacing.inFlightBytes,
        deliveredBytes: this.#delivered,
      })
    }
    return steps
  }

  #send(bytes: number): void {
    this.#sentBytes += bytes
    this.#freeAt = Math.max(this.#freeAt, this.now) + bytes / this.#bytesPerMs
    this.#acks.push({ at: this.#freeAt + this.#rttMs, delivered: this.#sentBytes })
    this.pacing.sent(bytes, 0)
  }
}

const mean = (values: readonly number[]): number =>
  values.reduce((sum, value) => sum + value, 0) / values.length

/** Share of the link's capacity that arrived within the steps. */
function utilisation(steps: readonly Step[], mbit: number): number {
  const first = steps[0]!
  const last = steps.at(-1)!
  return (last.deliveredBytes - first.deliveredBytes) / (((last.ms - first.ms) * mbit * 1e6) / 8 / 1000)
}

for (const { mbit, rttMs, frameBytes, fullAfterMs } of [
  { mbit: 100, rttMs: 50, frameBytes: 64 * KIB, fullAfterMs: 1000 },
  { mbit: 100, rttMs: 50, frameBytes: 4 * KIB, fullAfterMs: 1000 },
  { mbit: 1000, rttMs: 100, frameBytes: 128 * KIB, fullAfterMs: 2000 },
  { mbit: 1000, rttMs: 10, frameBytes: 128 * KIB, fullAfterMs: 500 },
  { mbit: 100, rttMs: 10, frameBytes: 64 * KIB, fullAfterMs: 500 },
  { mbit: 100, rttMs: 200, frameBytes: 64 * KIB, fullAfterMs: 3000 },
]) {
  test(`${mbit} Mbit/s, ${rttMs} ms, frames of ${frameBytes} bytes: full, and the queue stays near 50 ms`, () => {
    const link = new SimulatedLink({ mbit, rttMs })
    const steps = link.run(40_000, frameBytes)
    const steady = steps.filter((step) => step.ms > fullAfterMs)
    assert.ok(utilisation(steady, mbit) >= 0.95, `utilisation ${utilisation(steady, mbit)}`)
    const late = steps.filter((step) => step.ms > fullAfterMs + 1000)
    const queueMs = mean(late.map((step) => step.queueMs))
    assert.ok(queueMs > 20 && queueMs < 75, `mean queue ${queueMs} ms`)
    const worstMs = Math.max(...late.map((step) => step.queueMs))
    assert.ok(worstMs < 130, `longest queue ${worstMs} ms`)
    const measured = link.pacing.rateBytesPerSecond / ((mbit * 1e6) / 8)
    assert.ok(measured > 0.9 && measured < 1.15, `rate estimate ${measured} of the link`)
    assert.ok(link.pacing.minRttMs! < rttMs + 25, `least round trip ${link.pacing.minRttMs}`)
  })
}

test('a 1 Gbit/s path of 100 ms is filled within two seconds', () => {
  const link = new SimulatedLink({ mbit: 1000, rttMs: 100 })
  const steps = link.run(2000, 128 * KIB)
  const lastHalf = steps.filter((step) => step.ms > 1500)
  assert.ok(utilisation(lastHalf, 1000) >= 0.95, `utilisation ${utilisation(lastHalf, 1000)}`)
})

test('idle time and a trickle do not lower the estimate', () => {
  const link = new SimulatedLink({ mbit: 100, rttMs: 50 })
  link.run(5000, 64 * KIB)
  const before = link.pacing.rateBytesPerSecond
  const sent = link.deliveredBytes + link.pacing.inFlightBytes
  // 64 KiB every second for half a minute.
  link.run(35_000, 64 * KIB, (now) => sent + Math.floor((now - 5000) / 1000) * 64 * KIB)
  assert.ok(
    link.pacing.rateBytesPerSecond > before * 0.9,
    `${link.pacing.rateBytesPerSecond} after ${before}`,
  )
  const burst = link.run(37_000, 64 * KIB).filter((step) => step.ms > 35_300)
  assert.ok(utilisation(burst, 100) >= 0.95, `utilisation ${utilisation(burst, 100)} right after idling`)
})

test('a link that gets slower is noticed within two seconds, one that gets faster is used', () => {
  const link = new SimulatedLink({ mbit: 100, rttMs: 20 })
  link.run(5000, 64 * KIB)
  link.mbit = 25
  link.run(8000, 64 * KIB)
  const slow = link.run(12_000, 64 * KIB)
  assert.ok(
    mean(slow.map((step) => step.queueMs)) < 110,
    `queue ${mean(slow.map((step) => step.queueMs))} ms`,
  )
  assert.ok(utilisation(slow, 25) >= 0.9)
  link.mbit = 400
  link.run(14_000, 64 * KIB)
  const fast = link.run(18_000, 64 * KIB)
  assert.ok(utilisation(fast, 400) >= 0.9, `utilisation ${utilisation(fast, 400)}`)
})

test('the limit begins at 512 KiB and never exceeds the ceiling', () => {
  const link = new SimulatedLink({ mbit: 100_000, rttMs: 100 })
  assert.equal(link.pacing.limitBytes, 512 * KIB)
  let most = 0
  for (const step of link.run(5000, MIB)) most = Math.max(most, step.inFlightBytes)
  assert.ok(most <= 33 * MIB && most >= 31 * MIB, `${most}`)
})

test('a ceiling given by the far end holds', () => {
  const pacing = new Pacing({ clock: () => 0, ceilingBytes: 256 * KIB })
  assert.equal(pacing.limitBytes, 256 * KIB)
})

test('an ack that is not the end of a frame is told from one that is', () => {
  const pacing = new Pacing({ clock: () => 0 })
  pacing.sent(100, 1)
  pacing.sent(50, 2)
  const seen: number[][] = []
  assert.equal(
    pacing.acknowledged(100, (bytes, tag) => seen.push([bytes, tag])),
    true,
  )
  assert.deepEqual(seen, [[100, 1]])
  assert.equal(pacing.acknowledged(120), false)
  assert.equal(new Pacing({ clock: () => 0 }).acknowledged(1), false)
})
