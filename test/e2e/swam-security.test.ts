/**
 * Who may do what, in a lab with the permissions of a real host: swamd as user swam with two capabilities, sshd with the
 * restricted key, libvirtd and QEMU under their own users. Strangers, a local user (mallory), a member of group swam
 * (oper), the key of a peer, and two peers that lie each try what they must not; where that matters, somebody who may
 * does the same and succeeds. docs/security.md has the table.
 */
import assert from 'node:assert/strict'
import { randomUUID } from 'node:crypto'
import { readFileSync } from 'node:fs'
import { test } from 'node:test'
import { parse } from 'smol-toml'
import type { Lab } from '../lab/lab.ts'
import { type RunResult, until } from '../lab/run.ts'
import { ADDRESSES } from '../lab/seed.ts'
import { Attack, HOSTILE, NODE } from './attack.ts'
import type { ClientPlan } from './hostile.ts'
import { logs, QUIET, SMALL, status, swamLab } from './swam-lab.ts'

const SECRET = 'S3CRET-OF-THIS-HOST'
const PORT = 49_190
const FOREIGN_PORT = 49_191

async function prepare(lab: Lab, attack: Attack): Promise<void> {
  for (const name of ['hosta', 'hostb'] as const) {
    await lab.host(name).shell(`
      useradd --user-group --no-create-home mallory; useradd --user-group --no-create-home --groups swam oper
      usermod --password '${SECRET}' root
      mkdir -m 700 /root/private; head -c 2097152 /dev/urandom >/root/private/secret.raw; chmod 600 /root/private/secret.raw
      cd /var/lib/libvirt/images; ln -s /root/private/secret.raw link.raw; ln -s /root/private linked; ln -s /etc escape`)
  }
  const hosta = lab.host('hosta')
  attack.hostKey = readFileSync(`${lab.dir}/keys/host-hosta.pub`, 'utf8').split(' ').slice(0, 2).join(' ')
  // A second peer of hosta, whose key lies at hostb.
  await lab
    .host('hostb')
    .shell(`ssh-keygen -q -t ed25519 -N '' -f /run/swam/third; chown swam:swam /run/swam/third`)
  const key = (await lab.host('hostb').read('/run/swam/third.pub')).trim()
  const entry = '/usr/lib/swam/bin/swam-peer --peer third --socket /run/swam/peer.sock'
  await hosta.exec('tee', ['-a', '/var/lib/swam/.ssh/authorized_keys'], {
    input: `restrict,command="${entry}" ${key}\n`,
  })
  const { peers } = parse(await hosta.read('/etc/swam/swam.toml')) as { peers: Record<string, unknown>[] }
  await hosta.configureSwam({ peers: [...peers, { ...peers[0], name: 'third', addresses: ['10.8.0.9'] }] })
  await Promise.all(lab.hosts().map((host) => host.startSwamd({ timeoutMs: 60_000 })))
  await until('hostb to have its peer', 60_000, async () =>
    (await status(lab, 'hostb'))?.peers.every(({ up }) => up) ? true : undefined,
  )
}

const OWN_KEY = '/etc/swam/id_ed25519'
const THIRD_KEY = '/run/swam/third'

test('who may do what', { timeout: 900_000 }, async (t) => {
  await using lab = await swamLab('security')
  const attack = new Attack(lab)
  await prepare(lab, attack)
  const hosta = lab.host('hosta')
  const hostb = lab.host('hostb')
  const guest = lab.tinyGuest({ ...SMALL, write: QUIET })
  await guest.create('hosta')
  const { uuid } = guest
  const pid = await hosta.swamdPid()
  const alive = async (): Promise<void> =>
    assert.equal(await hosta.swamdPid(), pid, `swamd at hosta ended\n${logs(lab)}`)

  /** Sockets of hosta's swamd, as ss sees them. */
  const listeners = async (): Promise<string[]> => {
    const { stdout } = await hosta.exec('ss', ['-Hlntup'])
    return stdout.split('\n').filter((line) => line.includes(`pid=${pid},`))
  }

  await t.test('a stranger: swamd listens on nothing', async () => {
    assert.deepEqual(await listeners(), [])
  })

  await t.test(
    'the process: two capabilities, no way to more, no keys in arguments or environment',
    async () => {
      const text = await hosta.read(`/proc/${pid}/status`)
      const word = (name: string): string => new RegExp(`^${name}:\\s+(\\S+)`, 'm').exec(text)?.[1] ?? ''
      // CAP_NET_ADMIN is 12, CAP_DAC_READ_SEARCH 2.
      for (const set of ['CapEff', 'CapPrm', 'CapBnd'])
        assert.equal(Number.parseInt(word(set), 16), 0x1004, set)
      assert.equal(word('NoNewPrivs'), '1')
      assert.equal(word('Uid'), (await hosta.exec('id', ['-u', 'swam'])).stdout.trim())
      const said = (await hosta.shell('cat /proc/*/cmdline /proc/*/environ | tr "\\0" "\\n"')).stdout
      const key = (await hosta.read(OWN_KEY)).split('\n')[2] ?? ''
      assert.ok(key.length > 40 && !said.includes(key) && !said.includes('PRIVATE KEY'))
      for (const user of ['mallory', 'oper'] as const) {
        for (const path of [OWN_KEY, '/var/lib/swam/.ssh/authorized_keys', `/proc/${pid}/environ`])
          assert.notEqual((await attack.as('hosta', user, 'cat', path)).code, 0, `${user} reads ${path}`)
        for (const path of ['/var/lib/swam', '/run/swam/incoming', `/proc/${pid}/fd`])
          assert.notEqual((await attack.as('hosta', user, 'ls', path)).code, 0, `${user} lists ${path}`)
      }
    },
  )

  await t.test('the sockets: a local user reaches none, group swam only control.sock', async () => {
    const modes = await hosta.exec('stat', [
      '-c',
      '%a %U %G',
      ...['control', 'hook', 'peer'].map((name) => `/run/swam/${name}.sock`),
    ])
    assert.deepEqual(modes.stdout.trim().split('\n'), ['660 swam swam', '600 swam swam', '600 swam swam'])
    for (const name of ['control', 'hook', 'peer']) {
      for (const user of ['mallory', 'oper'] as const) {
        const [said] = await attack.run('hosta', user, 'client', { path: `/run/swam/${name}.sock` })
        if (user === 'oper' && name === 'control') assert.ok(said?.local !== undefined, JSON.stringify(said))
        else assert.match(said?.error ?? JSON.stringify(said), /EACCES/, `${user} at ${name}.sock`)
      }
    }
    const refused = await attack.as('hosta', 'mallory', '/usr/bin/swam', 'status')
    assert.deepEqual([refused.code, /not allowed/.test(refused.stderr)], [4, true], refused.stderr)
    assert.equal((await attack.as('hosta', 'oper', '/usr/bin/swam', 'status')).code, 0)
    const entry = ['/usr/lib/swam/bin/swam-peer', '--peer', 'hostb', '--socket', '/run/swam/peer.sock']
    for (const user of ['mallory', 'oper'] as const) {
      const { code, stderr } = await attack.as('hosta', user, ...entry)
      assert.notEqual(code, 0)
      assert.match(stderr, /cannot reach swamd at .*EACCES/, `${user} as a peer`)
    }
    for (const method of ['hook', 'hookReport', 'catalog', '__proto__', 'constructor']) {
      const request = {
        version: 1,
        method,
        params: { path: '/etc/shadow', op: 'migrate', sub: 'begin', guest: 'x', xml: '' },
      }
      const said = await attack.run('hosta', 'oper', 'client', {
        path: '/run/swam/control.sock',
        send: `${JSON.stringify(request)}\n`,
      })
      assert.ok(
        said.some(({ got }) => got?.includes('unknown method')),
        `${method}: ${JSON.stringify(said)}`,
      )
    }
    await alive()
  })

  await t.test(
    '/etc/shadow: no command shows what its user may not read, and none prints what it is',
    async () => {
      assert.match(await hosta.read('/etc/shadow'), new RegExp(SECRET))
      for (const words of [
        ['config', 'check', '/etc/shadow'],
        ['--config', '/etc/shadow', 'config', 'check'],
        ['--config', '/etc/shadow', 'status'],
        ['--config', '/etc/shadow', 'history', '--json'],
        ['--config', '/etc/shadow', 'hook', '--', 'x', 'migrate', 'begin', '-'],
        ['--socket', '/etc/shadow', 'status'],
        ['--config', '/var/lib/libvirt/images/escape/shadow', 'config', 'check'],
      ]) {
        for (const user of ['mallory', 'oper', 'root'] as const) {
          const { stdout, stderr, code } = await attack.as('hosta', user, '/usr/bin/swam', ...words)
          assert.ok(
            !`${stdout}${stderr}`.includes(SECRET),
            `${user}: swam ${words.join(' ')}: ${stdout}${stderr}`,
          )
          if (!words.includes('hook')) assert.notEqual(code, 0)
        }
      }
      const other = await attack.as('hosta', 'mallory', '/usr/sbin/swamd', '--config', '/etc/shadow')
      assert.equal(other.code, 6)
      // Another user's daemon gets none of swamd's places.
      const own = await attack.as('hosta', 'mallory', '/usr/sbin/swamd', '--config', '/etc/swam/swam.toml')
      assert.notEqual(own.code, 0)
      assert.match(own.stderr + own.stdout, /EACCES|permitted|denied/i)
      await alive()
    },
  )

  await t.test("the peer's key: no shell, no command, no terminal, no forwarding, no sftp", async () => {
    const options = [
      '-F',
      '/dev/null',
      '-i',
      OWN_KEY,
      '-o',
      'BatchMode=yes',
      '-o',
      'IdentitiesOnly=yes',
      '-o',
      'UserKnownHostsFile=/etc/ssh/ssh_known_hosts',
    ]
    const ssh = async (...words: readonly string[]): Promise<string> => {
      const { stdout, stderr } = await hostb.exec('timeout', ['20', 'ssh', ...options, ...words], {
        check: false,
        input: '',
      })
      assert.doesNotMatch(stdout, /uid=|root:|SSH-2/, words.join(' '))
      return stdout + stderr
    }
    const allowed = await ssh('-v', 'swam@hosta', 'id; cat /etc/passwd')
    assert.match(allowed, /key options: command(?! \w)/, 'nothing but the command is allowed')
    await ssh('swam@hosta')
    await ssh('swam@hosta', '/bin/sh', '-c', 'id')
    assert.match(await ssh('-tt', 'swam@hosta', 'id'), /PTY allocation request failed/)
    assert.match(await ssh('-W', '127.0.0.1:22', 'swam@hosta'), /prohibited|open failed/i)
    assert.match(await ssh('-W', '10.8.0.2:22', 'swam@hosta'), /prohibited|open failed/i)
    assert.match(
      await ssh('-o', 'ExitOnForwardFailure=yes', '-N', '-R', '9998:127.0.0.1:22', 'swam@hosta'),
      /remote port forwarding failed/,
    )
    assert.match(
      await ssh('-o', 'ExitOnForwardFailure=yes', '-N', '-R', '/tmp/sock:127.0.0.1:22', 'swam@hosta'),
      /remote port forwarding failed/,
    )
    const sftp = await hostb.exec('timeout', ['20', 'sftp', ...options, '-b', '-', 'swam@hosta'], {
      check: false,
      input: 'get /etc/passwd\n',
    })
    assert.notEqual(sftp.code, 0)
    assert.match(await ssh('root@hosta', 'id'), /Permission denied/)
    // A local forward: who uses it gets nothing.
    const control = await hostb.shell(
      `timeout 10 ssh ${options.join(' ')} -N -L /tmp/c.sock:/run/swam/control.sock swam@hosta & sleep 2
       ${NODE} ${HOSTILE} client '${JSON.stringify({ path: '/tmp/c.sock', send: '{"version":1,"method":"status"}\n' })}'; wait`,
      { check: false, timeoutMs: 60_000 },
    )
    assert.doesNotMatch(control.stdout, /"got"/)
    await alive()
  })

  const id = randomUUID()

  await t.test(
    'a peer that lies: only its own migrations, only their ports, only guests that run here',
    async () => {
      const port = { migrationId: id, port: PORT, exports: [] }
      await using third = attack.start('hostb', 'swam', 'armed', {
        address: ADDRESSES.hosta.v4,
        hostKey: attack.hostKey,
        key: THIRD_KEY,
        uuid,
        migrationId: id,
        ports: [PORT],
      })
      assert.deepEqual(await third.line('the other peer to arm its migration'), { result: 'armed' })
      const own = randomUUID()
      const said = await attack.calls(
        OWN_KEY,
        [
          { method: 'locate', params: { uuid: randomUUID() } },
          { method: 'announce', params: { migrationId: own, uuid: randomUUID() } },
          { method: 'arm', params: { migrationId: id, ports: [PORT] } },
          { method: 'classify', params: port },
          { method: 'stop', params: { migrationId: id, reason: 'because' } },
          { method: 'announce', params: { migrationId: id, uuid } },
          { method: 'announce', params: { migrationId: own, uuid } },
          { method: 'arm', params: { migrationId: own, ports: [PORT] } },
          { method: 'arm', params: { migrationId: own, ports: [22] } },
          {
            method: 'arm',
            params: { migrationId: own, ports: Array.from({ length: 9 }, (_, at) => 49_152 + at) },
          },
          { method: 'classify', params: { ...port, migrationId: own } },
          { method: 'hook', params: {} },
          { method: 'status', params: {} },
          { method: 'announce', params: { migrationId: '../../etc', uuid } },
        ],
        [
          { kind: 'disk', migrationId: randomUUID() },
          { kind: 'ram', migrationId: id },
        ],
      )
      const expected = [
        /belongs to no announced migration/,
        /belongs to no announced migration/,
        { found: false },
        /does not run here/,
        /is not known here/,
        /is not known here/,
        { peer: 'hostb' },
        /is known already/,
        {},
        /armed before its channels were there/,
        /port 22 is outside/,
        /a list of at most 8/,
        /is not one of its ports/,
        /method "hook" is not known/,
        /method "status" is not known/,
        /migrationId: expected a uuid/,
      ]
      assert.equal(said.length, expected.length, JSON.stringify(said))
      for (const [at, wanted] of expected.entries()) {
        if (wanted instanceof RegExp)
          assert.match(said[at]?.error ?? JSON.stringify(said[at]), wanted, `row ${at}`)
        else assert.deepEqual(said[at]?.result, wanted, `row ${at}: ${JSON.stringify(said[at])}`)
      }
      const seen = await status(lab, 'hosta')
      assert.ok(
        seen?.migrations.some((one) => one.id === id && one.peer === 'third'),
        "another peer's migration goes on",
      )
      assert.deepEqual(third.lines, [{ result: 'armed' }], 'its channels are untouched')
      await alive()
    },
  )

  await t.test('a listener: QEMU and libvirtd come in, and nobody else', async (inner) => {
    const migrationId = randomUUID()
    await using far = attack.start('hostb', 'swam', 'armed', {
      address: ADDRESSES.hosta.v4,
      hostKey: attack.hostKey,
      key: OWN_KEY,
      uuid,
      migrationId,
      ports: [PORT],
    })
    assert.deepEqual(await far.line('the peer to arm'), { result: 'armed' })
    const listening = await listeners()
    assert.ok(listening.length > 0, 'it listens while it is armed')
    for (const line of listening) assert.match(line, /\s(127\.77\.0\.1|\[::1\]):2\d{4}\s/)
    const listenPort = Number(/127\.77\.0\.1:(\d+)/.exec(listening.join('\n'))?.[1])

    await inner.test('strangers on loopback get no byte', async () => {
      for (const user of ['mallory', 'oper', 'swam', 'root', 'qemu'] as const) {
        const said = await attack.run('hosta', user, 'client', {
          host: '127.77.0.1',
          port: listenPort,
          send: 'hello',
        })
        assert.ok(
          said.every(({ got }) => got === undefined),
          `${user}: ${JSON.stringify(said)}`,
        )
        assert.equal(said.at(-1)?.closed, true, `${user} is put out: ${JSON.stringify(said)}`)
      }
      const outside = await hostb.exec(
        'timeout',
        ['5', NODE, HOSTILE, 'client', JSON.stringify({ host: '127.77.0.1', port: listenPort })],
        { check: false },
      )
      assert.doesNotMatch(outside.stdout, /"local"/)
      assert.deepEqual(
        far.lines,
        [{ result: 'armed' }],
        'the migration waits on: a stranger is no connection of it',
      )
    })

    await inner.test('a flood of strangers: they are put out, and QEMU still gets in', async () => {
      const [flood] = await attack.run('hosta', 'mallory', 'flood', {
        host: '127.77.0.1',
        port: listenPort,
        count: 3000,
        send: 'x',
      })
      assert.equal(flood?.ends?.['answered'], undefined, JSON.stringify(flood))
      const refusals = hosta
        .swamdLog()
        .split('\n')
        .filter((line) => line.includes('not from libvirtd or QEMU'))
      assert.ok(refusals.length < 200, `${refusals.length} log lines`)
      await alive()
    })

    const genuine: ClientPlan = {
      host: ADDRESSES.hostb.v4,
      port: PORT,
      send: 'hello',
      stay: true,
      fromAddress: ADDRESSES.hosta.v4,
      fromPort: 41_234,
    }
    await using qemu = attack.start('hosta', 'qemu', 'client', genuine)
    await qemu.line('QEMU to connect')
    assert.deepEqual(await qemu.line('the echo from the far side'), { got: 'hello' })

    await inner.test("a stranger who takes QEMU's own address and port is a stranger", async () => {
      const said = await attack.run('hosta', 'mallory', 'client', {
        host: '127.77.0.1',
        port: listenPort,
        send: 'evil',
        fromAddress: ADDRESSES.hosta.v4,
        fromPort: 41_234,
      })
      assert.ok(
        said.every(({ got }) => got === undefined),
        JSON.stringify(said),
      )
      assert.ok(
        qemu.lines.every(({ got }) => got === undefined || got === 'hello'),
        'nor gets QEMU his bytes',
      )
    })

    await inner.test('the same two, each with the far port: only QEMU is caught', async () => {
      const said = await attack.run('hosta', 'mallory', 'client', {
        host: ADDRESSES.hostb.v4,
        port: PORT,
        send: 'x',
      })
      assert.match(said[0]?.error ?? JSON.stringify(said), /ECONNREFUSED/)
    })

    await inner.test(
      'ports that another migration armed, and more than a migration may have, are not to be had',
      async () => {
        const all = Array.from({ length: 8 }, (_, at) => FOREIGN_PORT + at)
        const said = await attack.calls(OWN_KEY, [
          { method: 'arm', params: { migrationId, ports: all }, times: 20 },
        ])
        assert.ok(
          said.every(({ error }) => error?.includes('9 ports')),
          JSON.stringify(said[0]),
        )
        const few = { method: 'arm', params: { migrationId, ports: [FOREIGN_PORT] }, times: 20 }
        await attack.calls(OWN_KEY, [few])
        const open = (await listeners()).filter((line) => line.includes('127.77.0.1'))
        assert.equal(open.length, 2, `one listener for each port: ${open.join('\n')}`)
      },
    )
  })

  await t.test(
    'a peer that floods: no more than eight virsh at once, and the daemon answers others',
    async () => {
      let most = 0
      let done = false
      const flooding = attack
        .calls(OWN_KEY, [{ method: 'locate', params: { uuid }, times: 400 }])
        .finally(() => {
          done = true
        })
      while (!done) {
        const { stdout } = await hosta.exec('pgrep', ['-c', '-x', 'virsh'], { check: false })
        most = Math.max(most, Number(stdout))
      }
      const said = await flooding
      assert.equal(said.length, 400)
      const refused = said.filter(({ error }) => error?.includes('calls are served already')).length
      assert.ok(refused > 0 && refused < 400, `${refused} of 400 refused`)
      assert.ok(most > 0 && most <= 9, `${most} virsh at once`)
      assert.ok((await status(lab, 'hosta')) !== undefined)
      await alive()
    },
  )

  await t.test('a peer that opens bundles without end is refused, another peer is taken', async () => {
    const many = Array.from({ length: 6 }, () => ({ kind: 'control' as const, migrationId: '' }))
    const plan = { address: ADDRESSES.hosta.v4, hostKey: attack.hostKey }
    const runs = await Promise.all(
      Array.from({ length: 3 }, () =>
        attack.run('hostb', 'swam', 'calls', {
          ...plan,
          key: THIRD_KEY,
          calls: [],
          bundles: many.slice(0, 2),
        }),
      ),
    )
    assert.equal(runs.flat().length, 6)
    const [answer] = await attack.calls(OWN_KEY, [{ method: 'locate', params: { uuid } }])
    assert.equal((answer?.result as { found?: boolean } | undefined)?.found, true, JSON.stringify(answer))
    await alive()
  })

  await t.test('a member of group swam that floods control.sock does not hold up the hook', async () => {
    const flood = attack.run('hosta', 'oper', 'flood', {
      path: '/run/swam/control.sock',
      count: 1000,
      send: '{"version":1,"method":"history"}\n',
    })
    const started = performance.now()
    const xml = guest.xml().replaceAll(uuid, randomUUID())
    const hook = await hosta.exec(
      '/etc/libvirt/hooks/qemu.d/50-swam',
      [guest.name, 'migrate', 'begin', '-'],
      { input: xml, check: false, timeoutMs: 60_000 },
    )
    assert.equal(hook.code, 0)
    assert.match(hook.stderr, /^$|no peer runs this guest/)
    assert.ok(performance.now() - started < 30_000)
    const [ends] = await flood
    assert.ok((ends?.ends?.['answered'] ?? 0) > 0, JSON.stringify(ends))
    assert.equal((await hosta.swam('status')).code, 0)
    await alive()
  })

  await t.test('links out of the images directories: nothing is read or made through them', async () => {
    const xml = (path: string, name = guest.name): string =>
      guest
        .xml()
        .replaceAll(`/var/lib/libvirt/images/${guest.imageName}`, path)
        .replace(`<name>${guest.name}</name>`, `<name>${name}</name>`)
    const hook = async (text: string, name = guest.name): Promise<RunResult> =>
      await hostb.exec('/etc/libvirt/hooks/qemu.d/50-swam', [name, 'migrate', 'begin', '-'], {
        input: text,
        check: false,
        timeoutMs: 60_000,
      })
    const before = (
      await hostb.shell('ls -lA /etc /root/private; ls -A /; sha256sum /root/private/secret.raw')
    ).stdout
    for (const path of [
      '/var/lib/libvirt/images/escape/evil.raw',
      '/var/lib/libvirt/images/linked/evil.raw',
      '/var/lib/libvirt/images/../../../../etc/evil.raw',
      '/etc/cron.d/evil',
      '/root/private/secret.raw',
    ]) {
      const { code, stdout } = await hook(xml(path))
      assert.deepEqual([code, stdout], [0, ''], path)
    }
    assert.equal(
      (await hostb.shell('ls -lA /etc /root/private; ls -A /; sha256sum /root/private/secret.raw')).stdout,
      before,
    )
    // The same with a path that is allowed makes the image: the rows above can fail.
    await hook(xml('/var/lib/libvirt/images/honest.raw'))
    assert.match(
      (await hostb.shell('stat -c %s /var/lib/libvirt/images/honest.raw')).stdout,
      new RegExp(`^${guest.diskBytes}$`, 'm'),
    )
    const open = await hostb.shell(
      `ls -l /proc/${await hostb.swamdPid()}/fd; find -L /proc/${await hostb.swamdPid()}/fd -samefile /root/private/secret.raw || true`,
    )
    assert.doesNotMatch(open.stdout, /secret/)
    assert.match(open.stdout, /->/)
  })

  await t.test('hostile XML: the hook passes, nothing is made, the daemon goes on', async () => {
    const pidB = await hostb.swamdPid()
    const good = guest.xml()
    const names = async (): Promise<string[]> =>
      (await hostb.shell('ls -A /run/swam/incoming /var/lib/libvirt/images /etc')).stdout.split('\n')
    for (const [what, text, name] of [
      ['nothing', '', guest.name],
      ['no XML', 'x'.repeat(100_000), guest.name],
      [
        'an entity bomb',
        `<!DOCTYPE d [<!ENTITY a "aaaaaaaaaa"><!ENTITY b "&a;&a;&a;&a;">]>${good}`,
        guest.name,
      ],
      ['an external entity', `<!DOCTYPE d [<!ENTITY x SYSTEM "file:///etc/shadow">]>${good}`, guest.name],
      ['deep nesting', `${'<a>'.repeat(100_000)}`, guest.name],
      ['many elements', `<domain>${'<a/>'.repeat(200_000)}</domain>`, guest.name],
      ['2 MiB', `<domain>${' '.repeat(2 << 20)}</domain>`, guest.name],
      [
        'a name that climbs',
        good.replace(`<name>${guest.name}</name>`, '<name>../../etc/x</name>'),
        '../../etc/x',
      ],
      ['a name with a line break', good.replace(`<name>${guest.name}</name>`, '<name>a\nb</name>'), 'a\nb'],
      ['another name than the call', good, 'other'],
      [
        'a disk path with a zero',
        good.replaceAll('/var/lib/libvirt/images/', '/var/lib/libvirt/images/&#0;'),
        guest.name,
      ],
    ] as const) {
      const before = await names()
      const { code, stdout, stderr } = await hostb.exec(
        '/etc/libvirt/hooks/qemu.d/50-swam',
        [name, 'migrate', 'begin', '-'],
        { input: text, check: false, timeoutMs: 60_000 },
      )
      assert.deepEqual([code, stdout], [0, ''], what)
      assert.ok(!stderr.includes(SECRET), what)
      assert.deepEqual(
        (await names()).filter((name) => !before.includes(name)),
        [],
        what,
      )
    }
    assert.equal(await hostb.swamdPid(), pidB)
  })
})
