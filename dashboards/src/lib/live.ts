// The live side: how a stream's updates add up to what is on screen.
import type { Answer, Cell, Column, Row, Update, ViewDetail } from './api'
import { columnsOf, compareFigures, figure, isNumeric, keyCell, plain } from './format'

/** Whether a view's rows are shown as the stream brings them. All others are asked for as the view moves on. */
export const isStreamed = ({ window, limit }: ViewDetail): boolean => window !== null && (window.kind === 'session' || limit !== null)

export interface LiveView {
  /** The last update without its rows. */
  answer: Omit<Answer, 'rows'>
  /** The latest window's rows by `keyOf`. */
  rows: ReadonlyMap<string, Row>
  /** Ranks by `keyOf` when the window before this one was left; `null` in the first. */
  before: ReadonlyMap<string, number> | null
}

/** What tells a row from others: its keys, and of sessions the start too. */
export function keyOf(view: ViewDetail, row: Row): string {
  const cells = [...columnsOf(view.columns, 'key').map(({ name }) => row[name] ?? null), row.window_start ?? null]
  return JSON.stringify(cells.map((cell) => (typeof cell === 'bigint' ? [plain(cell)] : cell)))
}

/** A row's key for people: its key columns, or `all` where the view has none. */
export function keyText(view: ViewDetail, row: Row): string {
  const keys = columnsOf(view.columns, 'key')
  return keys.length === 0 ? 'all' : keys.map(({ name, type }) => keyCell(row[name], type)).join(' · ')
}

/** The server's order of texts: that of their code points, which is not that of JavaScript's strings. */
function compareTexts(a: string, b: string): number {
  let at = 0
  while (at < a.length && a[at] === b[at]) at += 1
  if (at > 0 && /[\udc00-\udfff]/.test((a[at] ?? '') + (b[at] ?? ''))) at -= 1 // in the middle of a character
  return (a.codePointAt(at) ?? -1) - (b.codePointAt(at) ?? -1)
}

/** Times as texts have as many digits as they need: the shorter is the earlier as far as they agree. */
const compareTimes = (a: string, b: string): number =>
  Date.parse(a) - Date.parse(b) || compareTexts(a.replace('Z', ''), b.replace('Z', ''))

function compareCells(a: Cell | undefined, b: Cell | undefined, type: string, descending: boolean): number {
  if (a === b) return 0
  if (a === null || a === undefined) return 1
  if (b === null || b === undefined) return -1
  const order = isNumeric({ type }) ? compareFigures(figure(a)!, figure(b)!) : compareOthers(a, b, type)
  return descending ? -order : order
}

function compareOthers(a: Cell, b: Cell, type: string): number {
  if (typeof a !== 'string' || typeof b !== 'string') return Number(a) - Number(b)
  return type === 'TIMESTAMP' ? compareTimes(a, b) : compareTexts(a, b)
}

/** The order in which a view's rows are shown: its own, else that of its first aggregate, the largest first. */
export function orderOf(view: ViewDetail): ViewDetail['order'] {
  const first = columnsOf(view.columns, 'aggregate')[0]
  return view.order.length > 0 ? view.order : first ? [{ column: first.name, descending: true }] : []
}

/** Rows in the order of `orderOf`; ties by key, ascending, and what is null last. */
export function compareRows(view: ViewDetail): (a: Row, b: Row) => number {
  const typeOf = (name: string) => view.columns.find((column: Column) => column.name === name)?.type ?? ''
  const by = [...orderOf(view), ...columnsOf(view.columns, 'key').map(({ name }) => ({ column: name, descending: false }))]
  const parts = by.map((part) => ({ ...part, type: typeOf(part.column) }))
  return (a, b) => {
    for (const { column, descending, type } of parts) {
      const result = compareCells(a[column], b[column], type, descending)
      if (result !== 0) return result
    }
    return 0
  }
}

export function ranked(view: ViewDetail, live: LiveView | undefined): Row[] {
  const sorted = [...(live?.rows.values() ?? [])].sort(compareRows(view))
  return view.limit === null ? sorted : sorted.slice(0, view.limit)
}

export function applyUpdate(view: ViewDetail, live: LiveView | undefined, update: Update): LiveView {
  const { rows: changed, removed, reset, ...answer } = update
  const rows = new Map(reset ? [] : live?.rows)
  for (const row of removed ?? []) rows.delete(keyOf(view, row))
  for (const row of changed) rows.set(keyOf(view, row), row)
  const moved = live !== undefined && live.answer.window?.end !== answer.window?.end
  const before = moved ? new Map(ranked(view, live).map((row, at) => [keyOf(view, row), at + 1])) : (live?.before ?? null)
  return { answer, rows, before }
}

/** How far a row has climbed since the window before: places, `'new'`, or `0` where nothing is known. */
export function climbed(before: LiveView['before'], key: string, rank: number): number | 'new' {
  if (before === null) return 0
  const was = before.get(key)
  return was === undefined ? 'new' : was - rank
}
