/** Which calls of libvirt's hook mean something, and what. */
import assert from 'node:assert/strict'
import { test } from 'node:test'
import { decideHook, type HookDisk } from '../../../hooks/decision.ts'

const disk: HookDisk = {
  target: 'vda',
  type: 'file',
  source: '/images/a',
  format: 'raw',
  readOnly: false,
  shareable: false,
}
const uuid = '33333333-3333-4333-8333-333333333333'
const domain = {
  name: 'vm',
  uuid,
  disks: [disk, { ...disk, target: 'vdb', readOnly: true }, { ...disk, target: 'vdc', shareable: true }],
}

for (const { argv, event } of [
  { argv: ['vm', 'migrate', 'begin'], event: { type: 'migrateBegin', guest: 'vm', uuid, disks: [disk] } },
  { argv: ['vm', 'started', 'begin'], event: { type: 'started', guest: 'vm', uuid } },
  { argv: ['vm', 'stopped', 'end'], event: { type: 'ended', guest: 'vm', uuid } },
  { argv: ['vm', 'release', 'end'], event: { type: 'ended', guest: 'vm', uuid } },
  { argv: ['vm', 'prepare', 'begin'], event: undefined },
  { argv: ['vm', 'reconnect', 'begin'], event: undefined },
  { argv: ['vm', 'migrate', 'end'], event: undefined },
  { argv: ['other', 'migrate', 'begin'], event: undefined },
  { argv: ['vm'], event: undefined },
  { argv: [], event: undefined },
]) {
  test(`${argv.join(' ')}: ${event?.type ?? 'not ours'}`, () => {
    assert.deepEqual(decideHook(argv, domain), event)
  })
}
