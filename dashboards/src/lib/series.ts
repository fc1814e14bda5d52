// Totals of one aggregate per window, split into the part that batch has made exact and the rest.
import type { Answer, Column, Row, ViewDetail } from './api'
import { durationMs, toNumber } from './format'

export interface Point {
  start: number // of the window, milliseconds
  end: number
  exact: number
  approximate: number
}

export interface Series {
  step: number // from one window's end to the next; of a time zone's days, about
  points: Point[]
}

export type Combine = 'sum' | 'min' | 'max'

/** How an aggregate adds up over a window's keys: counts and sums add, of anything else the largest is shown. */
export function combineOf(column: Column): Combine {
  switch (column.function) {
    case undefined:
    case 'count':
    case 'sum':
      return 'sum'
    case 'min':
      return 'min'
    default:
      return 'max'
  }
}

const COMBINE: Record<Combine, (a: number, b: number) => number> = { sum: (a, b) => a + b, min: Math.min, max: Math.max }

export interface Total {
  start: number
  value: number
}

/** By window end. */
export type Totals = Map<number, Total>

export function totals(rows: Row[], column: string, combine: Combine): Totals {
  const byEnd: Totals = new Map()
  for (const row of rows) {
    const start = Date.parse(String(row.window_start))
    const end = Date.parse(String(row.window_end))
    const value = toNumber(row[column])
    if (Number.isNaN(start) || Number.isNaN(end) || value === null) continue
    const sum = byEnd.get(end)
    byEnd.set(end, { start, value: sum === undefined ? value : COMBINE[combine](sum.value, value) })
  }
  return byEnd
}

/** The last windows, with those that have no rows where they are a fixed time apart. */
export function points(merged: Totals, batch: Totals, { size, step, even }: Range, combine: Combine, windows: number): Point[] {
  if (merged.size === 0) return []
  let ends = [...merged.keys()].sort((a, b) => a - b).slice(-windows)
  if (even) {
    const last = ends.at(-1)!
    const first = Math.max(ends[0]!, last - (windows - 1) * step)
    ends = Array.from({ length: Math.round((last - first) / step) + 1 }, (_, at) => first + at * step)
  }
  return ends.map((end) => {
    const { start, value: total } = merged.get(end) ?? { start: end - size, value: 0 }
    const done = batch.get(end)?.value ?? 0
    if (combine === 'sum') return { start, end, exact: Math.min(done, total), approximate: Math.max(0, total - done) }
    return done === total ? { start, end, exact: total, approximate: 0 } : { start, end, exact: 0, approximate: total }
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
 * The range to ask for: the last `windows` windows up to the one that the watermark is about to close, and the one
 * after it, where the newest events are. Sliding windows that end later yet hold only their first slides so far.
 */
export function range(view: ViewDetail, windows: number): Range | null {
  const size = durationMs(view.window?.size ?? '')
  const step = durationMs(view.window?.slide ?? '') ?? size
  const watermark = Date.parse(view.watermark ?? '')
  if (size === null || step === null || Number.isNaN(watermark)) return null
  // Days begin where a zone says, so there is a day to spare on either side.
  if (view.window?.zone) {
    const to = watermark + size + DAY_MS
    return { from: to - windows * size - 2 * DAY_MS, to, size, step, even: false }
  }
  const phase = (durationMs(view.window?.offset ?? '') ?? 0) + size
  const to = (Math.floor((watermark - phase) / step) + 2) * step + phase
  return { from: to - size - (windows - 1) * step, to, size, step, even: true }
}

/** The rows of the newest window in a range answer. */
export function newestRows(answer: Pick<Answer, 'rows'>): Row[] {
  const end = answer.rows.at(-1)?.window_end
  return end === undefined ? [] : answer.rows.filter((row) => row.window_end === end)
}
