/**
 * A small XML reader for what libvirt prints: elements, attributes, text. Pure. It takes hostile input: no document
 * type and thus no entities but the five of XML and characters by number, ceilings for bytes, depth and elements.
 * It does not know namespaces (a prefix is part of the name) and does not check that names are valid names.
 */
import { ProtocolError } from '../core/errors.ts'
import { DOMAIN_XML_BYTES_MAX, DOMAIN_XML_DEPTH_MAX, DOMAIN_XML_ELEMENTS_MAX } from '../core/limits.ts'

export interface XmlElement {
  readonly name: string
  readonly attributes: ReadonlyMap<string, string>
  readonly children: readonly XmlElement[]
  /** The text directly inside, pieces joined. */
  readonly text: string
}

interface OpenElement {
  readonly name: string
  readonly attributes: Map<string, string>
  readonly children: OpenElement[]
  text: string
}

const ENTITIES: Readonly<Record<string, string>> = { lt: '<', gt: '>', amp: '&', quot: '"', apos: "'" }
const NAME = /[^\s<>/=!?'"&]+/y
const SPACE = /\s*/y
const ATTRIBUTE = /([^\s<>/=!?'"&]+)\s*=\s*(?:"([^"<]*)"|'([^'<]*)')/y

/** Throws ProtocolError. */
export function parseXml(text: string): XmlElement {
  if (Buffer.byteLength(text) > DOMAIN_XML_BYTES_MAX) {
    throw new ProtocolError(`XML: expected at most ${DOMAIN_XML_BYTES_MAX} bytes`)
  }
  return new Reader(text).document()
}

/** The first child of that name. */
export function childOf(element: XmlElement | undefined, name: string): XmlElement | undefined {
  return element?.children.find((child) => child.name === name)
}

export function childrenOf(element: XmlElement | undefined, name: string): readonly XmlElement[] {
  return element?.children.filter((child) => child.name === name) ?? []
}

class Reader {
  readonly #text: string
  #at = 0
  #elements = 0

  constructor(text: string) {
    this.#text = text
  }

  document(): XmlElement {
    const open: OpenElement[] = []
    let root: OpenElement | undefined
    while (this.#at < this.#text.length) {
      const parent = open.at(-1)
      if (!this.#text.startsWith('<', this.#at)) {
        const end = this.#text.indexOf('<', this.#at)
        const raw = this.#text.slice(this.#at, end < 0 ? undefined : end)
        if (parent !== undefined) parent.text += this.#decode(raw)
        else if (raw.trim() !== '' && raw.trim() !== '\ufeff')
          throw this.#fault('expected an element, found text')
        this.#at += raw.length
      } else if (this.#skip('<!--', '-->') || this.#skip('<?', '?>')) {
        // Comments and processing instructions say nothing to us.
      } else if (this.#text.startsWith('<![CDATA[', this.#at)) {
        const end = this.#text.indexOf(']]>', this.#at)
        if (end < 0 || parent === undefined) throw this.#fault('expected "]]>" inside an element')
        parent.text += this.#text.slice(this.#at + 9, end)
        this.#at = end + 3
      } else if (this.#text.startsWith('<!', this.#at)) {
        throw this.#fault('expected no document type and no declarations')
      } else if (this.#text.startsWith('</', this.#at)) {
        this.#at += 2
        const name = this.#name()
        this.#space()
        if (parent?.name !== name)
          throw this.#fault(`expected the end of ${parent?.name ?? 'nothing'}, found ${name}`)
        this.#expect('>')
        open.pop()
      } else {
        const { element, closed } = this.#startTag()
        if (parent !== undefined) parent.children.push(element)
        else if (root === undefined) root = element
        else throw this.#fault('expected one root element, found a second')
        if (!closed) open.push(element)
        if (open.length > DOMAIN_XML_DEPTH_MAX)
          throw this.#fault(`expected at most ${DOMAIN_XML_DEPTH_MAX} levels`)
      }
    }
    if (open.length > 0)
      throw this.#fault(`expected the end of ${open.at(-1)!.name}, found the end of the text`)
    if (root === undefined) throw this.#fault('expected an element, found nothing')
    return root
  }

  #startTag(): { element: OpenElement; closed: boolean } {
    this.#elements += 1
    if (this.#elements > DOMAIN_XML_ELEMENTS_MAX)
      throw this.#fault(`expected at most ${DOMAIN_XML_ELEMENTS_MAX} elements`)
    this.#at += 1
    const element: OpenElement = { name: this.#name(), attributes: new Map(), children: [], text: '' }
    for (;;) {
      const spaced = this.#space()
      if (this.#text.startsWith('>', this.#at)) {
        this.#at += 1
        return { element, closed: false }
      }
      if (this.#text.startsWith('/>', this.#at)) {
        this.#at += 2
        return { element, closed: true }
      }
      ATTRIBUTE.lastIndex = this.#at
      const match = spaced ? ATTRIBUTE.exec(this.#text) : null
      if (match === null) throw this.#fault(`expected an attribute of ${element.name}, ">" or "/>"`)
      const name = match[1]!
      if (element.attributes.has(name)) throw this.#fault(`expected the attribute ${name} once`)
      element.attributes.set(name, this.#decode(match[2] ?? match[3]!))
      this.#at += match[0].length
    }
  }

  #name(): string {
    NAME.lastIndex = this.#at
    const match = NAME.exec(this.#text)
    if (match === null) throw this.#fault('expected a name')
    this.#at += match[0].length
    return match[0]
  }

  #space(): boolean {
    SPACE.lastIndex = this.#at
    const length = SPACE.exec(this.#text)![0].length
    this.#at += length
    return length > 0
  }

  #expect(text: string): void {
    if (!this.#text.startsWith(text, this.#at)) throw this.#fault(`expected ${JSON.stringify(text)}`)
    this.#at += text.length
  }

  #skip(start: string, end: string): boolean {
    if (!this.#text.startsWith(start, this.#at)) return false
    const position = this.#text.indexOf(end, this.#at + start.length)
    if (position < 0) throw this.#fault(`expected ${JSON.stringify(end)}`)
    this.#at = position + end.length
    return true
  }

  #decode(raw: string): string {
    if (!raw.includes('&')) return raw
    return raw.replaceAll(/&([^;&]*)(;?)/g, (_whole, name: string, end: string) => {
      const known = end === ';' && Object.hasOwn(ENTITIES, name) ? ENTITIES[name] : undefined
      if (known !== undefined) return known
      const number = end === ';' ? /^#(?:x([0-9a-fA-F]{1,6})|(\d{1,7}))$/.exec(name) : null
      const code =
        number === null ? -1 : Number.parseInt(number[1] ?? number[2]!, number[1] === undefined ? 10 : 16)
      if (code <= 0 || code > 0x10ffff)
        throw this.#fault(`expected a known entity, found &${name.slice(0, 16)}`)
      return String.fromCodePoint(code)
    })
  }

  #fault(message: string): ProtocolError {
    return new ProtocolError(`XML: at character ${this.#at}: ${message}`)
  }
}
