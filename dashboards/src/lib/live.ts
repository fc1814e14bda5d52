// The live side: one event stream for all views, and how its updates add up to what is on screen.
import { streamPath, type Answer, type Cell, type Row, type Update, type ViewDetail } from './api'
import { columnsOf } from './format'

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
  return JSON.stringify([...columnsOf(view.columns, 'key').map(({ name }) => row[name] ?? null), row.window_start ?? null])
}

/** A row's key for people: its key columns, or `all` where the view has none. */
export function keyText(view: ViewDetail, row: Row): string {
  const keys = columnsOf(view.columns, 'key')
  return keys.length === 0 ? 'all' : keys.map(({ name }) => (row[name] === null ? 'null' : String(row[name]))).join(' · ')
}

function compareCells(a: Cell | undefined, b: Cell | undefined, descending: boolean): number {
  if (a === b) return 0
  if (a === null || a === undefined) return 1
  if (b === null || b === undefined) return -1
  return (a < b ? -1 : 1) * (descending ? -1 : 1)
}

/** The view's own order, else its first aggregate from the largest down; ties by key, ascending. */
export function compareRows(view: ViewDetail): (a: Row, b: Row) => number {
  const first = columnsOf(view.columns, 'aggregate')[0]
  const order = view.order.length > 0 ? view.order : first ? [{ column: first.name, descending: true }] : []
  const by = [...order, ...columnsOf(view.columns, 'key').map(({ name }) => ({ column: name, descending: false }))]
  return (a, b) => {
    for (const { column, descending } of by) {
      const result = compareCells(a[column], b[column], descending)
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

export type Connection = 'connecting' | 'live' | 'reconnecting'

const FIRST_RETRY_MS = 1000
const LAST_RETRY_MS = 15_000

/**
 * One connection for all `views`. The browser reconnects by itself after a cut; where it gives up (an error status)
 * this tries again, ever more slowly. Returns the function that closes it.
 */
export function subscribe(
  views: string[],
  on: { update: (update: Update) => void; connection: (state: Connection) => void },
): () => void {
  let source: EventSource | undefined
  let timer: ReturnType<typeof setTimeout> | undefined
  let wait = FIRST_RETRY_MS

  function open() {
    source = new EventSource(streamPath(views))
    source.onopen = () => {
      wait = FIRST_RETRY_MS
      on.connection('live')
    }
    source.addEventListener('update', (event: MessageEvent<string>) => on.update(JSON.parse(event.data) as Update))
    source.onerror = () => {
      on.connection('reconnecting')
      if (source?.readyState !== EventSource.CLOSED) return
      timer = setTimeout(open, wait)
      wait = Math.min(wait * 2, LAST_RETRY_MS)
    }
  }

  on.connection('connecting')
  open()
  return () => {
    clearTimeout(timer)
    source?.close()
  }
}
