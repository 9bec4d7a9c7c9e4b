/** Text that comes from libvirt, the administrator, the kernel and tools: domain XML, swam.toml, history, /proc, output. */
import assert from 'node:assert/strict'
import { existsSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { checkConfigText } from '../../../config/load.ts'
import { decideHook } from '../../../hooks/decision.ts'
import { parseMap } from '../../../lib/catalog/data-extents.ts'
import { parseShared } from '../../../lib/catalog/shared-parts.ts'
import { ProtocolError, RefusedError, SwamError } from '../../../lib/core/errors.ts'
import {
  DOMAIN_XML_DEPTH_MAX,
  DOMAIN_XML_ELEMENTS_MAX,
  IMAGE_BYTES_MAX,
  PATH_BYTES_MAX,
} from '../../../lib/core/limits.ts'
import { BLOCK_BYTES, MIB } from '../../../lib/core/units.ts'
import { imageFormats, isGuestName, isUuid, parseDomain } from '../../../lib/host/domain-xml.ts'
import { Libvirt, parseJobInfo } from '../../../lib/host/libvirt.ts'
import { addressDigits, addressText, parseTcpTable } from '../../../lib/host/procnet.ts'
import { parseListing } from '../../../lib/host/redirect.ts'
import { parseSs } from '../../../lib/host/tcp-info.ts'
import { parseXml, type XmlElement } from '../../../lib/host/xml.ts'
import { historyText } from '../../../server/cli/history.ts'
import { History } from '../../../server/history.ts'
import { allowing } from '../checks.ts'
import type { FuzzTarget } from '../target.ts'

const UUID = '8950abfd-a7b7-4763-8760-dd35bcf5c3da'

/** Of the image whose map is in the corpus. */
const IMAGE_BYTES = 256 * MIB
const ONE_DISK =
  `<domain><name>vm</name><uuid>${UUID}</uuid><devices>` +
  "<disk><source file='/a'/><target dev='vda'/></disk></devices></domain>"

function words(text: string): Buffer[] {
  return text.split(' ').map((word) => Buffer.from(word))
}

/** Gives how many elements there are; also looks at the form of each. */
function count(element: XmlElement, depth = 1): number {
  assert.ok(depth <= DOMAIN_XML_DEPTH_MAX)
  assert.notEqual(element.name, '')
  return element.children.reduce((sum, child) => sum + count(child, depth + 1), 1)
}

function escaped(text: string): string {
  return text.replaceAll('&', '&amp;').replaceAll('<', '&lt;').replaceAll('"', '&quot;')
}

function xmlText({ name, attributes, children, text }: XmlElement): string {
  const pairs = [...attributes].map(([key, value]) => ` ${key}="${escaped(value)}"`)
  return `<${name}${pairs.join('')}>${escaped(text)}${children.map(xmlText).join('')}</${name}>`
}

export const domainXml: FuzzTarget = {
  name: 'domain-xml',
  inputBytesMax: 16_384,
  allocationBytesMax: 65_536,
  dictionary: [
    ...words('<domain <disk> </disk> /> <!-- --> <![CDATA[ ]]> <? ?> <!DOCTYPE &amp; &#x41; &#65; &quot; ="'),
    ...words(
      '<name> <uuid> <devices> <source file="/x" dev= type="file" <target <readonly/> ../ /etc/shadow',
    ),
    ...words(`${UUID} device="disk" &#0; &#xd800; &#x110000; &#9999999; \u0000 \ufeff`),
  ],
  run(input) {
    const text = input.toString('utf8')
    const parsed = allowing([ProtocolError], () => parseXml(text))
    if (!('value' in parsed)) return
    assert.ok(count(parsed.value) <= DOMAIN_XML_ELEMENTS_MAX)
    assert.deepEqual(
      parseXml(xmlText(parsed.value)),
      parsed.value,
      'what is read can be written and read again',
    )
    const files = allowing([ProtocolError], () => imageFormats(text))
    if ('value' in files) {
      for (const { path } of files.value)
        assert.ok(path.startsWith('/') && Buffer.byteLength(path) <= PATH_BYTES_MAX, path.slice(0, 80))
    }
    const found = allowing([ProtocolError], () => parseDomain(text))
    if (!('value' in found)) return
    const domain = found.value
    assert.ok(isGuestName(domain.name) && isUuid(domain.uuid))
    assert.equal(new Set(domain.disks.map(({ target }) => target)).size, domain.disks.length)
    for (const { source } of domain.disks) assert.ok(source === undefined || source.startsWith('/'))
    const event = decideHook([domain.name, 'migrate', 'begin'], domain)
    assert.equal(event?.type, 'migrateBegin')
    assert.equal(decideHook([`${domain.name}x`, 'migrate', 'begin'], domain), undefined)
  },
}

export const config: FuzzTarget = {
  name: 'config',
  inputBytesMax: 16_384,
  allocationBytesMax: 65_536,
  dictionary: words(
    'site= peers [[peers]] ssh={ addresses=[ name= __proto__ constructor [limits] [status] wanMbit ' +
      'images=["/"] strict=true 1979-05-27 inf nan 0x1f 1_000 """ \'\'\' \\u0000 a.b.c [a.b] # , ] }',
  ),
  run(input) {
    // Whatever it says, the answer is a list of what is wrong, with lines that exist.
    const text = input.toString('utf8')
    const lines = text.split('\n').length
    for (const { line, expected, found } of checkConfigText(text, 'swam.toml')) {
      assert.ok(Number.isInteger(line) && line >= 1 && line <= lines, `line ${line} of ${lines}`)
      assert.ok(expected !== '' && found.length <= 400)
    }
    assert.equal(({} as Record<string, unknown>)['polluted'], undefined)
  },
}

let historyFolder: string | undefined

function stateFolder(): string {
  if (historyFolder === undefined) {
    const folder = mkdtempSync(join(tmpdir(), 'swam-fuzz-'))
    historyFolder = folder
    process.on('exit', () => rmSync(folder, { recursive: true, force: true }))
  }
  return historyFolder
}

export const history: FuzzTarget = {
  name: 'history',
  inputBytesMax: 16_384,
  allocationBytesMax: 65_536,
  dictionary: words(
    '{"version":1,"id": "disks":[] "disks":null "ram":{} null -1 1e999 "guest": \n } ] "bySource":',
  ),
  async run(input) {
    const folder = stateFolder()
    writeFileSync(join(folder, 'history.jsonl'), input)
    const migrations = await new History(folder).read()
    // Control characters of a damaged file must not reach a terminal: the line breaks are the table's own.
    assert.doesNotMatch(historyText({ version: 1, migrations }), /[^\P{Cc}\n]/u)
  },
}

export const running: FuzzTarget = {
  name: 'running',
  inputBytesMax: 16_384,
  allocationBytesMax: 65_536,
  dictionary: words(
    '{"version":1,"id": "disks":[] "accelerated":true "phase":"done" "error":null null -1 \n } ] "bySource":',
  ),
  async run(input) {
    const folder = stateFolder()
    const files = ['history.jsonl', 'running.json'].map((name) => join(folder, name))
    rmSync(files[0]!, { force: true })
    writeFileSync(files[1]!, input)
    const kept = new History(folder)
    const count = await kept.recover('swamd was killed')
    // What was under way is over, each entry once for each time it stands there, and all of them are failures.
    const migrations = await kept.read()
    assert.equal(migrations.length, count)
    for (const { phase, error, etaMs } of migrations) {
      assert.deepEqual({ phase, error, etaMs }, { phase: 'failed', error: 'swamd was killed', etaMs: null })
    }
    assert.equal(existsSync(files[1]!), false)
    assert.equal(await new History(folder).recover('again'), 0, 'a second start finds nothing')
    assert.equal((await kept.read()).length, count)
  },
}

export const procTables: FuzzTarget = {
  name: 'proc-tables',
  inputBytesMax: 16_384,
  allocationBytesMax: 65_536,
  dictionary: words(
    '0100007F:C000 00000000000000000000000001000000:0016 FFFFFFFF:FFFF 0A 01 00000000:00000000 1000 : ::1 %eth0',
  ),
  run(input) {
    const text = input.toString('latin1')
    for (const row of parseTcpTable(text)) {
      for (const address of [row.localAddress, row.remoteAddress]) {
        assert.match(address, /^[0-9a-f]{32}$/)
        assert.equal(addressDigits(addressText(address)), address, 'an address survives its text')
      }
      for (const port of [row.localPort, row.remotePort]) assert.ok(port >= 0 && port <= 65_535)
      assert.ok(Number.isInteger(row.uid) && Number.isInteger(row.state))
    }
    const digits = allowing([RefusedError], () => addressDigits(text))
    if ('value' in digits) assert.match(digits.value, /^[0-9a-f]{32}$/)
  },
}

export const toolOutput: FuzzTarget = {
  name: 'tool-output',
  inputBytesMax: 16_384,
  allocationBytesMax: 65_536,
  dictionary: words(
    'Job\u0020type:\u0020Completed Operation: Time\u0020elapsed: GiB MiB/s ms Capacity:\u0020 bytes_sent: segs_out:1 ts ' +
      '"start": "length": "zero":true {"nftables":[ {"map":{"elem":[ "concat":[ "elem":{"val": null {} "chain" "rule" running paused',
  ),
  async run(input) {
    const text = input.toString('utf8')
    for (const [name, value] of parseJobInfo(text).figures) {
      assert.ok(name.length <= 64 && value >= 0 && Number.isInteger(value))
    }
    const bytes = parseSs(text, input.length % 2 === 0)
    assert.ok(bytes === undefined || (Number.isFinite(bytes) && bytes >= 0), `${bytes} bytes`)
    const listing = allowing([ProtocolError, RefusedError], () => parseListing(text))
    if ('value' in listing) {
      for (const port of listing.value.elements.values()) assert.equal(typeof port, 'number')
    }
    let end = 0
    for (const extent of parseMap(text, IMAGE_BYTES) ?? []) {
      assert.ok(extent.offset >= end && extent.end > extent.offset && extent.end <= IMAGE_BYTES)
      assert.ok(extent.offset % BLOCK_BYTES === 0)
      end = extent.end
    }
    end = 0
    for (const part of parseShared(text, 1) ?? []) {
      assert.ok(part.offset >= end && part.end > part.offset && Number.isSafeInteger(part.end))
      end = part.end
    }
    // What a guest's XML may say is the target before; here its disks are asked for.
    const answer = (argv: readonly string[]): string =>
      argv.includes('domstate') ? 'running\n' : argv.includes('dumpxml') ? ONE_DISK : text
    const libvirt = new Libvirt({ run: async (argv) => answer(argv) })
    const domain = await libvirt.runningDomain(UUID).catch((error: unknown) => {
      if (!(error instanceof SwamError)) throw error
    })
    const memory = await libvirt.memoryBytes(UUID)
    assert.ok(memory === undefined || (Number.isSafeInteger(memory) && memory >= 0))
    const uuid = await libvirt.uuidOf('web')
    assert.ok(uuid === undefined || /^[0-9a-f-]{36}$/.test(uuid))
    for (const { capacity } of domain?.disks ?? []) {
      assert.ok(capacity === undefined || (capacity >= 0 && capacity <= IMAGE_BYTES_MAX))
    }
  },
}
