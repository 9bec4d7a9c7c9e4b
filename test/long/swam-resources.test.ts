/**
 * What migrations cost the daemons over hundreds of them: a hundred in a row, eight at once, and a soak of
 * SWAM_SOAK_MINUTES (the Makefile says 60; 10 without it) in which guests go both ways at once, some are given up in the
 * middle, and everything is then as it was. Memory must be bounded and flat: what it is in the last third of the runs
 * is compared with what it was in the second.
 */
import assert from 'node:assert/strict'
import { type TestContext, test } from 'node:test'
import { setTimeout as sleep } from 'node:timers/promises'
import { assertUnbusy, move, rested, say, settled, vitals } from '../e2e/leftovers.ts'
import { logs, MIB, QUIET, SMALL, startBoth, status, swamLab } from '../e2e/swam-lab.ts'
import type { Lab } from '../lab/lab.ts'
import type { HostName } from '../lab/state.ts'
import type { TinyGuest } from '../lab/tiny.ts'

const IN_A_ROW = 100
const AT_ONCE = 8
const APART_MS = 1500
const SOAK_MINUTES = Number(process.env['SWAM_SOAK_MINUTES'] ?? 10)
/** docs/limits.md, "Memory of swamd as a whole". */
const RSS_BYTES_MAX = 1536 * MIB
/** Between two thirds of the same work: less than one leaked run of 16 MiB in each of the migrations of a third. */
const GROWTH_BYTES_MAX = 48 * MIB

/**
 * Keys lie anywhere in the index, so each new block or chunk takes a page of it that nobody has touched: hundreds of migrations
 * until all of its 384 MiB are there. This one is there at once, and what grows then is something else.
 */
const SMALL_INDEX = { swamConfig: { limits: { indexMiB: 4 } } }

test('a hundred migrations in a row leave nothing behind', { timeout: 3_600_000 }, async (t) => {
  await using lab = await swamLab('hundred', SMALL_INDEX)
  const [guest] = await guestsOf(lab, 1)
  await move(lab, [guest!], 'hostb')
  await move(lab, [guest!], 'hosta')
  const before = await rested(lab)
  const memory = new Memory(t, lab)
  for (let i = 0; i < IN_A_ROW; i++) {
    await move(lab, [guest!], i % 2 === 0 ? 'hostb' : 'hosta')
    await memory.note(i % 10 === 9)
  }
  memory.assertFlat()
  await assertUnbusy(lab)
  await assertRested(lab, before)
})

test('eight migrations at once', { timeout: 3_600_000 }, async (t) => {
  await using lab = await swamLab('eight')
  const guests = await guestsOf(lab, AT_ONCE)
  await move(lab, guests.slice(0, 1), 'hostb')
  await move(lab, guests.slice(0, 1), 'hosta')
  const before = await rested(lab)
  // Slow enough that all of them are under way before the first one is over.
  await lab.wan.set({ mbit: 100 })
  for (const to of ['hostb', 'hosta', 'hostb', 'hosta'] as const) {
    const most = await whileWatched(lab, move(lab, guests, to, APART_MS))
    await say(
      t,
      lab,
      `eight to ${to}, ${most.migrations} at once, at most ${Math.round(most.rssBytes / MIB)} MiB`,
    )
    assert.ok(most.migrations > AT_ONCE / 2, `only ${most.migrations} were under way at the same time`)
    assert.ok(most.rssBytes <= RSS_BYTES_MAX, `${most.rssBytes} bytes of memory, at most ${RSS_BYTES_MAX}`)
  }
  await assertRested(lab, before)
})

test('a soak: both ways at once, some given up in the middle', {
  timeout: 3_600_000 + SOAK_MINUTES * 60_000,
}, async (t) => {
  await using lab = await swamLab('soak', SMALL_INDEX)
  const guests = await guestsOf(lab, 2)
  for (const to of ['hostb', 'hosta'] as const) await move(lab, guests, to)
  const before = await rested(lab)
  const memory = new Memory(t, lab)
  const until = performance.now() + SOAK_MINUTES * 60_000
  const at = new Map<TinyGuest, HostName>(guests.map((guest) => [guest, 'hosta']))
  let done = 0
  let aborted = 0
  for (let round = 0; performance.now() < until; round++) {
    // In step, then in opposite directions, then one of them alone.
    const chosen = round % 3 === 2 ? guests.slice(0, 1) : guests
    await Promise.all(
      chosen.map(async (guest) => {
        const from = at.get(guest)!
        const to = other(from)
        if ((round + guests.indexOf(guest)) % 4 === 3) {
          if (await giveUp(lab, guest, from)) aborted++
          else at.set(guest, to)
        } else {
          await move(lab, [guest], to)
          at.set(guest, to)
          done++
        }
      }),
    )
    await memory.note(round % 10 === 9)
  }
  assert.ok(done > 0 && aborted > 0, `${done} migrations, ${aborted} given up`)
  t.diagnostic(`${done} migrations, ${aborted} given up in ${SOAK_MINUTES} minutes`)
  for (const guest of guests) {
    const host = at.get(guest)!
    assert.equal((await lab.host(host).virsh('domstate', guest.name)).trim(), 'running')
    await guest.waitProgress(1)
    await assertRecords(lab, guest, host)
    if (host !== 'hosta') await move(lab, [guest], 'hosta')
  }
  memory.assertFlat()
  await assertRested(lab, before)
})

/** The most migrations, and the most memory of one daemon, that were seen while it went on. */
async function whileWatched(
  lab: Lab,
  moving: Promise<void>,
): Promise<{ migrations: number; rssBytes: number }> {
  const most = { migrations: 0, rssBytes: 0 }
  let over = false
  const ended = moving.finally(() => {
    over = true
  })
  while (!over) {
    for (const { name } of lab.hosts()) {
      const report = await status(lab, name)
      if (report === undefined) continue
      const copying = report.migrations.filter(({ phase }) => phase === 'copying' || phase === 'ready')
      most.migrations = Math.max(most.migrations, copying.length)
      most.rssBytes = Math.max(most.rssBytes, report.process.rssBytes)
    }
    await Promise.race([ended.catch(() => undefined), sleep(500)])
  }
  await ended
  return most
}

async function assertRecords(lab: Lab, guest: TinyGuest, host: HostName): Promise<void> {
  await lab.host(host).virsh('suspend', guest.name)
  const check = await guest.check(guest.imagePath(host))
  assert.ok(check.ok, check.faults.join('\n'))
  await lab.host(host).virsh('resume', guest.name)
}

function other(host: HostName): HostName {
  return host === 'hosta' ? 'hostb' : 'hosta'
}

async function guestsOf(lab: Lab, count: number): Promise<TinyGuest[]> {
  await startBoth(lab)
  const guests = Array.from({ length: count }, (_, at) =>
    lab.tinyGuest({
      ...SMALL,
      name: `guest${at}`,
      write: { ...QUIET, areaBytes: 4 << 20 },
      // Nobody measures their silence here, and eight that beat 200 times a second take both cores before anything migrates.
      beatMs: 100,
    }),
  )
  for (const guest of guests) {
    await guest.create('hosta')
    await guest.waitBoot()
  }
  return guests
}

/**
 * virsh gives up a moment after it began: it fails, and the guest runs on where it is. False: it was over before libvirt
 * took the order, and the guest is at the other host.
 */
async function giveUp(lab: Lab, guest: TinyGuest, from: HostName): Promise<boolean> {
  let over = false
  const migration = lab.migrate(guest, from, other(from)).finally(() => {
    over = true
  })
  await sleep(1500)
  while (!over) {
    // Refused while there is no job yet.
    const { code } = await lab.host(from).exec('virsh', ['domjobabort', guest.name], { check: false })
    if (code === 0) break
    await sleep(200)
  }
  if ((await migration).ok) return false
  assert.equal((await lab.host(from).virsh('domstate', guest.name)).trim(), 'running')
  return true
}

async function assertRested(lab: Lab, before: Awaited<ReturnType<typeof rested>>): Promise<void> {
  for (const [at, host] of lab.hosts().entries()) {
    assert.deepEqual(await settled(host, before[at]!), before[at], `${host.name}\n${logs(lab)}`)
  }
}

/** Resident memory of both daemons over the runs. */
class Memory {
  readonly #test: TestContext
  readonly #lab: Lab
  readonly #rss = new Map<string, number[]>()

  constructor(t: TestContext, lab: Lab) {
    this.#test = t
    this.#lab = lab
  }

  async note(aloud: boolean): Promise<void> {
    for (const [host, { rssBytes }] of Object.entries(await vitals(this.#lab))) {
      this.#rss.set(host, [...(this.#rss.get(host) ?? []), rssBytes])
    }
    if (aloud) await say(this.#test, this.#lab, `after ${[...this.#rss.values()][0]!.length}`)
  }

  /** By the means of thirds: single figures move with the garbage collector. */
  assertFlat(): void {
    for (const [host, figures] of this.#rss) {
      const third = Math.floor(figures.length / 3)
      const second = mean(figures.slice(third, 2 * third))
      const last = mean(figures.slice(2 * third))
      const text = `${host}: ${Math.round(second / MIB)} MiB in the second third, ${Math.round(last / MIB)} MiB in the last`
      this.#test.diagnostic(text)
      assert.ok(last - second <= GROWTH_BYTES_MAX, `memory grows: ${text}: ${figures.join(' ')}`)
    }
  }
}

function mean(figures: readonly number[]): number {
  return figures.reduce((sum, figure) => sum + figure, 0) / figures.length
}
