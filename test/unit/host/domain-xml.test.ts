/** The XML reader and what it makes of a guest: what libvirt prints is understood, what a hostile one prints is refused. */
import assert from 'node:assert/strict'
import { test } from 'node:test'
import fc from 'fast-check'
import { ProtocolError } from '../../../lib/core/errors.ts'
import { DOMAIN_XML_BYTES_MAX, DOMAIN_XML_DEPTH_MAX } from '../../../lib/core/limits.ts'
import { isGuestName, parseDomain } from '../../../lib/host/domain-xml.ts'
import { parseXml } from '../../../lib/host/xml.ts'

const UUID = '33333333-3333-4333-8333-333333333333'

function domain(devices: string, head = `<name>vm</name><uuid>${UUID}</uuid>`): string {
  return `<domain type='kvm' id='3'>${head}<devices>${devices}</devices></domain>`
}

test('a guest as libvirt prints it', () => {
  const xml = `<?xml version="1.0"?>
<!-- made by hand -->
<domain type='kvm' id='1' xmlns:qemu='http://libvirt.org/schemas/domain/qemu/1.0'>
  <name>web &amp; db</name>
  <uuid>${UUID.toUpperCase()}</uuid>
  <metadata><x:a xmlns:x="urn:x"><![CDATA[<disk/> & ]]></x:a></metadata>
  <devices>
    <disk type='file' device='disk'>
      <driver name='qemu' type='qcow2' discard='unmap'/>
      <source file='/images/a &#x26; b.qcow2' index='2'/>
      <backingStore type='file' index='3'>
        <format type='raw'/>
        <source file='/etc/shadow'/>
        <backingStore/>
      </backingStore>
      <target dev='vda' bus='virtio'/>
      <alias name='virtio-disk0'/>
    </disk>
    <disk type='block' device='lun'><driver type='raw'/><source dev="/dev/vg/lv"/><backingStore/><target dev='sda'/><shareable/></disk>
    <disk type='network' device='disk'><driver type='raw'/><source protocol='rbd' name='p/i'/><target dev='vdb'/></disk>
    <disk type='file'><source file='/images/plain'/><target dev='vdc'/><readonly/></disk>
    <disk type='file'><source file='/images/e'><encryption format='luks'/></source><target dev='vdd'/></disk>
    <disk type='file'><source file='/images/f'/><target dev='vde'/><encryption format='luks'/></disk>
    <disk type='file' device='cdrom'><target dev='hdc'/><readonly/></disk>
    <disk type='file' device='floppy'><source file='/x'/><target dev='fda'/></disk>
  </devices>
</domain>
`
  const base = { readOnly: false, shareable: false, encrypted: false, alias: undefined, backed: false }
  assert.deepEqual(parseDomain(xml), {
    name: 'web & db',
    uuid: UUID,
    disks: [
      {
        ...base,
        target: 'vda',
        type: 'file',
        source: '/images/a & b.qcow2',
        format: 'qcow2',
        alias: 'virtio-disk0',
        backed: true,
      },
      { ...base, target: 'sda', type: 'block', source: '/dev/vg/lv', format: 'raw', shareable: true },
      { ...base, target: 'vdb', type: 'network', source: undefined, format: 'raw' },
      { ...base, target: 'vdc', type: 'file', source: '/images/plain', format: 'raw', readOnly: true },
      { ...base, target: 'vdd', type: 'file', source: '/images/e', format: 'raw', encrypted: true },
      { ...base, target: 'vde', type: 'file', source: '/images/f', format: 'raw', encrypted: true },
    ],
  })
})

for (const { name, xml, message } of [
  { name: 'nothing', xml: '', message: /found nothing/ },
  { name: 'text alone', xml: 'hello', message: /found text/ },
  { name: 'a document type', xml: '<!DOCTYPE d [<!ENTITY a "b">]><domain/>', message: /no document type/ },
  {
    name: 'an entity of its own',
    xml: '<domain><name>&a;</name></domain>',
    message: /known entity, found &a/,
  },
  { name: 'an external entity name', xml: '<domain a="&toString;"/>', message: /known entity/ },
  { name: 'a character that is none', xml: '<domain>&#x110000;</domain>', message: /known entity/ },
  { name: 'a bare ampersand', xml: '<domain>a & b</domain>', message: /known entity/ },
  { name: 'an element that never ends', xml: '<domain><name>', message: /expected the end of name/ },
  {
    name: 'ends in the wrong order',
    xml: '<domain><a></domain></a>',
    message: /expected the end of a, found domain/,
  },
  { name: 'two roots', xml: '<domain/><domain/>', message: /one root/ },
  { name: 'an attribute twice', xml: '<domain a="1" a="2"/>', message: /attribute a once/ },
  { name: 'an attribute without quotes', xml: '<domain a=1/>', message: /expected an attribute/ },
  { name: 'attributes without a space', xml: '<domain a="1"b="2"/>', message: /expected an attribute/ },
  { name: 'a comment that never ends', xml: '<domain><!-- ', message: /-->/ },
  { name: 'a tag cut', xml: '<domain a="1"', message: /expected an attribute/ },
  { name: 'too deep', xml: '<a>'.repeat(DOMAIN_XML_DEPTH_MAX + 1), message: /at most 128 levels/ },
  { name: 'too many elements', xml: `<a>${'<b/>'.repeat(20_001)}</a>`, message: /at most 20000 elements/ },
  { name: 'too long', xml: `<a>${' '.repeat(DOMAIN_XML_BYTES_MAX)}</a>`, message: /at most 1048576 bytes/ },
  { name: 'another root', xml: '<network/>', message: /expected <domain>/ },
  { name: 'no name', xml: domain('', `<uuid>${UUID}</uuid>`), message: /expected a name/ },
  {
    name: 'a name that climbs',
    xml: domain('', `<name>../x</name><uuid>${UUID}</uuid>`),
    message: /expected a name/,
  },
  {
    name: 'a uuid that is none',
    xml: domain('', '<name>vm</name><uuid>--all</uuid>'),
    message: /expected a uuid/,
  },
  { name: 'a disk without a target', xml: domain('<disk/>'), message: /expected a disk target/ },
  {
    name: 'a target that is an option',
    xml: domain("<disk><target dev='--all'/></disk>"),
    message: /disk target/,
  },
  {
    name: 'a relative source',
    xml: domain("<disk type='file'><source file='x'/><target dev='vda'/></disk>"),
    message: /absolute path/,
  },
  {
    name: 'a target twice',
    xml: domain("<disk><target dev='vda'/></disk><disk><target dev='vda'/></disk>"),
    message: /each disk target once/,
  },
]) {
  test(`refused: ${name}`, () => {
    assert.throws(
      () => parseDomain(xml),
      (error) => error instanceof ProtocolError && message.test(error.message),
    )
  })
}

test('any text either parses or is a ProtocolError', () => {
  const piece = fc.constantFrom(
    '<a',
    '>',
    '/>',
    '</a>',
    ' b="',
    '"',
    '&amp;',
    '&',
    '<!--',
    '-->',
    '<![CDATA[',
    ']]>',
    'x',
    ' ',
    '<?',
    '?>',
  )
  fc.assert(
    fc.property(fc.array(piece, { maxLength: 30 }), (pieces) => {
      try {
        parseXml(pieces.join(''))
      } catch (error) {
        assert.ok(error instanceof ProtocolError, String(error))
      }
    }),
  )
})

test('text goes through escaping and back', () => {
  fc.assert(
    fc.property(fc.string({ unit: 'grapheme' }), (text) => {
      const escaped = text.replace(/[&<>"'\r\n\t]/g, (c) => `&#${c.charCodeAt(0)};`)
      const root = parseXml(`<a b="${escaped}">${escaped}</a>`)
      if (!text.includes('\0')) assert.deepEqual([root.attributes.get('b'), root.text], [text, text])
    }),
  )
})

test('names that may become files', () => {
  for (const name of ['vm', 'web & db', '-rf', 'ü']) assert.ok(isGuestName(name), name)
  for (const name of ['', '.', '..', '.x', 'a/b', 'a\nb', 'a\0', 'x'.repeat(256)])
    assert.ok(!isGuestName(name), name)
})
