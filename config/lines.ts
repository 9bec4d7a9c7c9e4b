/**
 * Where a key of a TOML text stands: a map from key paths (`peers`, 0, `ssh`, `port`) to lines, made from the syntax
 * tree of toml-eslint-parser. A key that is missing has the line of the nearest table that would hold it.
 * It takes text that smol-toml has accepted; where the two parsers disagree there are just no lines.
 */
import { type AST, parseTOML } from 'toml-eslint-parser'

export type KeyPath = readonly (string | number)[]

/** `peers[0].ssh.port`, `limits.wanMbit`; an odd key is quoted as TOML would. */
export function keyPathText(path: KeyPath): string {
  let text = ''
  for (const part of path) {
    if (typeof part === 'number') text += `[${part}]`
    else {
      const word = /^[A-Za-z0-9_-]+$/.test(part) ? part : JSON.stringify(part)
      text += text === '' ? word : `.${word}`
    }
  }
  return text
}

export class Lines {
  readonly #lines: Map<string, number> = new Map()

  constructor(text: string) {
    let top: AST.TOMLTopLevelTable
    try {
      top = parseTOML(text.replace(/^\ufeff/, ''), { tomlVersion: '1.1.0' }).body[0]
    } catch {
      return
    }
    for (const node of top.body) {
      if (node.type === 'TOMLKeyValue') this.#addKeyValue(node, [])
      else {
        this.#add(node.resolvedKey, node.loc.start.line)
        for (const inner of node.body) this.#addKeyValue(inner, node.resolvedKey)
      }
    }
  }

  /** From 1; the end of the search is the first line. */
  of(path: KeyPath): number {
    for (let length = path.length; length > 0; length -= 1) {
      const line = this.#lines.get(JSON.stringify(path.slice(0, length)))
      if (line !== undefined) return line
    }
    return 1
  }

  #add(path: KeyPath, line: number): void {
    // Each prefix is a table too; the first mention of it counts.
    for (let length = 1; length <= path.length; length += 1) {
      const key = JSON.stringify(path.slice(0, length))
      if (!this.#lines.has(key)) this.#lines.set(key, line)
    }
  }

  #addKeyValue(node: AST.TOMLKeyValue, at: KeyPath): void {
    const names = node.key.keys.map((key) => (key.type === 'TOMLBare' ? key.name : key.value))
    const path = [...at, ...names]
    this.#add(path, node.loc.start.line)
    this.#addContent(node.value, path)
  }

  #addContent(node: AST.TOMLContentNode, path: KeyPath): void {
    if (node.type === 'TOMLInlineTable') {
      for (const inner of node.body) this.#addKeyValue(inner, path)
    } else if (node.type === 'TOMLArray') {
      node.elements.forEach((element, index) => {
        this.#add([...path, index], element.loc.start.line)
        this.#addContent(element, [...path, index])
      })
    }
  }
}
