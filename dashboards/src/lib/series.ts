// One aggregate per window: what batch has said of it, and what both layers say together.
import type { Column, Row, ViewDetail } from './api'
import { compareFigures, durationMs, figure } from './format'

export type Figure = number | bigint

export interface Point {
  start: number // of the window, milliseconds
  end: number
  /** What batch has said; `null` before it has said anything. */
  exact: Figure | null
  /** What the speed layer adds to it, which may be negative; `null` where figures don't add up, or batch has no value. */
  approximate: Figure | null
  /** What both layers say together; `null` where there is no value. */
  total: Figure | null
  /** Whether bounds say more than the value. */
  unsure: boolean
}

export interface Series {
  step: number // from one window's end to the next; of a time zone's days, about
  points: Point[]
}

/** What a figure of a whole window is: a total over its keys where they add up, else the extreme of all keys. */
export type Combine = 'sum' | 'min' | 'max'

export const combineOf = (column: Column): Combine => (column.additive ? 'sum' : column.function === 'min' ? 'min' : 'max')

export interface Reading {
  start: number
  value: Figure | null
  unsure: boolean
}

/** By window end. */
export type Readings = Map<number, Reading>

/** Each window's figure: of rows that are totals the row's own, of rows of keys the smallest or the largest. */
export function readings(rows: Row[], column: string, combine: Combine): Readings {
  const byEnd: Readings = new Map()
  for (const row of rows) {
    const start = Date.parse(String(row.window_start))
    const end = Date.parse(String(row.window_end))
    if (Number.isNaN(start) || Number.isNaN(end)) continue
    const value = figure(row[column])
    const isTight = (bound: string) => row[bound] === undefined || (row[bound] ?? null) === (row[column] ?? null)
    const unsure = !isTight(`${column}_lower`) || !isTight(`${column}_upper`)
    const known = byEnd.get(end)
    const before = known?.value ?? null
    const order = before === null || value === null ? 0 : compareFigures(value, before)
    const wins = before === null || (combine === 'min' ? order < 0 : order > 0)
    byEnd.set(end, { start, value: wins ? value : before, unsure: unsure || (known?.unsure ?? false) })
  }
  return byEnd
}

/** `a - b`, exactly where both are integers. */
function minus(a: Figure, b: Figure): Figure {
  if (Number.isInteger(Number(a)) && Number.isInteger(Number(b)) && (typeof a === 'bigint' || typeof b === 'bigint')) {
    const difference = BigInt(a) - BigInt(b)
    const number = Number(difference)
    return Number.isSafeInteger(number) ? number : difference
  }
  const difference = Number(a) - Number(b)
  return Number.isSafeInteger(a) && Number.isSafeInteger(b) && !Number.isSafeInteger(difference) ? BigInt(a) - BigInt(b) : difference
}

/**
 * The last windows, with those that have no rows where they are a fixed time apart. `batch` is `null` before there is a
 * version. Totals are of all keys, so a window without rows has a total of 0; an extreme of none there isn't.
 */
export function points(merged: Readings, batch: Readings | null, { size, step, even }: Range, combine: Combine, windows: number): Point[] {
  let ends = [...new Set([...merged.keys(), ...(batch?.keys() ?? [])])].sort((a, b) => a - b).slice(-windows)
  if (even && ends.length > 0) {
    const last = ends.at(-1)!
    const first = Math.max(ends[0]!, last - (windows - 1) * step)
    ends = Array.from({ length: Math.round((last - first) / step) + 1 }, (_, at) => first + at * step)
  }
  const none = combine === 'sum' ? 0 : null
  return ends.map((end) => {
    const [both, done] = [merged.get(end), batch?.get(end)]
    const start = both?.start ?? done?.start ?? end - size
    const total = both ? both.value : none
    const exact = batch === null ? null : done ? done.value : none
    const said = batch === null ? 0 : exact
    // A null of batch may be a sum beyond 64 bits: what the speed layer adds to it can't be told.
    const adds = combine === 'sum' && total !== null && said !== null && Number.isFinite(Number(said))
    const approximate = adds ? minus(total, said) : null
    return { start, end, exact, approximate, total, unsure: both?.unsure ?? false }
  })
}

export interface Range {
  from: number
  to: number
  size: number
  step: number
  even: boolean // whether windows are a fixed time apart: days of a time zone aren't
}

const DAY_MS = 86_400_000

/**
 * The range to ask for: the last `windows` windows up to the one after that which the watermark is about to close, or to
 * the one that the newest event ends next, whose end is `newest`. Sliding windows that end later yet hold only their first
 * slides so far.
 */
export function range(view: ViewDetail, windows: number, newest = -Infinity): Range | null {
  const size = durationMs(view.window?.size ?? '')
  const step = durationMs(view.window?.slide ?? '') ?? size
  const watermark = Date.parse(view.watermark ?? '')
  if (size === null || step === null || Number.isNaN(watermark)) return null
  // Days begin where a zone says, so there is a day to spare on either side.
  if (view.window?.zone) {
    const to = Math.max(watermark, newest) + size + DAY_MS
    return { from: to - windows * size - 2 * DAY_MS, to, size, step, even: false }
  }
  const phase = (durationMs(view.window?.offset ?? '') ?? 0) + size
  const to = Math.max((Math.floor((watermark - phase) / step) + 2) * step + phase, newest)
  return { from: to - size - (windows - 1) * step, to, size, step, even: true }
}
