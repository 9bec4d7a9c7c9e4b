/**
 * A peer whose swamd speaks another version of the protocol: migrations go direct, both ways, and status and history say
 * that it is the version. The other version is this tree with one number changed.
 */
import assert from 'node:assert/strict'
import { test } from 'node:test'
import type { LabHost } from '../lab/host.ts'
import { until } from '../lab/run.ts'
import type { HostName } from '../lab/state.ts'
import { goesDirect, other } from './swam-failing.ts'
import { entry, moveThrough, QUIET, resume, SMALL, startBoth, status, swamLab } from './swam-lab.ts'

const OTHER_VERSION = 61_234

/** Lays a copy beside the installed one, and starts that from now on. */
async function installOtherVersion(host: LabHost): Promise<void> {
  await host.shell(`
mkdir -p /opt/swam-next
cd /usr/lib/swam
cp -r bin config hooks lib server package.json /opt/swam-next/
ln -s /usr/lib/swam/node_modules /opt/swam-next/node_modules
sed -i 's/^\\(export const PROTOCOL_VERSION: number = \\)[0-9]*/\\1${OTHER_VERSION}/' /opt/swam-next/lib/wire/hello.ts
grep -q ' = ${OTHER_VERSION}$' /opt/swam-next/lib/wire/hello.ts
ln -sf /opt/swam-next/bin/swamd /usr/sbin/swamd`)
}

test('a peer that speaks another version', { timeout: 600_000 }, async (t) => {
  await using lab = await swamLab('version')
  const guest = lab.tinyGuest({ ...SMALL, write: { ...QUIET, areaBytes: 4 << 20 } })
  await guest.create('hosta')
  await guest.waitBoot()
  await guest.waitProgress(2)
  await installOtherVersion(lab.host('hostb'))
  for (const host of lab.hosts()) await host.startSwamd()

  await t.test('status says it at both', async () => {
    for (const { name } of lab.hosts()) {
      // A daemon that was not there yet is the first error.
      const said = await until(`the error of a peer at ${name}`, 30_000, async () => {
        const peer = (await status(lab, name))?.peers[0]
        return peer?.error?.includes('protocol version') === true ? peer : undefined
      })
      assert.equal(said.up, false)
      assert.match(
        said.error ?? '',
        new RegExp(`protocol version (1|${OTHER_VERSION}).*version (1|${OTHER_VERSION})`),
      )
      assert.match((await lab.host(name).swam('status')).stdout, /down.*protocol version/)
    }
  })

  for (const from of ['hosta', 'hostb'] as const satisfies readonly HostName[]) {
    await t.test(`from ${from} it goes direct, and history says why`, async () => {
      const since = Date.now()
      await goesDirect(lab, guest, from)
      const found = await entry(lab, other(from), guest, since)
      assert.equal(found.accelerated, false)
      assert.match(found.reason ?? '', new RegExp(`no peer runs this guest.*${from}: .*protocol version`))
    })
  }

  await t.test('with the same version again it goes through SWAM', async () => {
    // Both: hosta would wait with its next attempt for up to a minute.
    for (const host of lab.hosts()) await host.stopSwamd()
    await lab.host('hostb').shell('ln -sf /usr/lib/swam/bin/swamd /usr/sbin/swamd')
    await startBoth(lab)
    await moveThrough(lab, guest, 'hosta', 'hostb')
    await resume(lab, guest, 'hostb')
  })
})
