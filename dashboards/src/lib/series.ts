// Totals of one aggregate per window, split into the part that batch has made exact and the rest.
import type { Answer, Column, Row, ViewDetail } from './api'
import { durationMs, toNumber } from './format'

export interface Point {
  end: number // of the window, milliseconds
  exact: number
  approximate: number
}

export interface Series {
  size: number // of a window, milliseconds
  step: number // from one window's end to the next
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

/** By window end. */
export type Totals = Map<number, number>

export function totals(rows: Row[], column: string, combine: Combine): Totals {
  const byEnd: Totals = new Map()
  for (const row of rows) {
    const end = Date.parse(String(row.window_end))
    const value = toNumber(row[column])
    if (Number.isNaN(end) || value === null) continue
    const sum = byEnd.get(end)
    byEnd.set(end, sum === undefined ? value : COMBINE[combine](sum, value))
  }
  return byEnd
}

export function points(merged: Totals, batch: Totals, step: number, combine: Combine, windows: number): Point[] {
  if (merged.size === 0) return []
  const ends = [...merged.keys()]
  const last = ends.reduce((a, b) => Math.max(a, b))
  const first = Math.max(ends.reduce((a, b) => Math.min(a, b)), last - (windows - 1) * step)
  const all: Point[] = []
  for (let end = first; end <= last; end += step) {
    const total = merged.get(end) ?? 0
    const done = batch.get(end) ?? 0
    if (combine === 'sum') all.push({ end, exact: Math.min(done, total), approximate: Math.max(0, total - done) })
    else all.push(done === total ? { end, exact: total, approximate: 0 } : { end, exact: 0, approximate: total })
  }
  return all
}

/**
 * The range to ask for: the last `windows` windows up to the one that the watermark is about to close, and the one
 * after it, where the newest events are. Sliding windows that end later yet hold only their first slides so far.
 */
export function range(view: ViewDetail, windows: number): { from: number; to: number; size: number; step: number } | null {
  const size = durationMs(view.window?.size ?? '')
  const step = durationMs(view.window?.slide ?? '') ?? size
  const watermark = Date.parse(view.watermark ?? '')
  if (size === null || step === null || Number.isNaN(watermark)) return null
  const to = (Math.floor(watermark / step) + 2) * step
  return { from: to - size - (windows - 1) * step, to, size, step }
}

/** The rows of the newest window in a range answer. */
export function newestRows(answer: Pick<Answer, 'rows'>): Row[] {
  const end = answer.rows.at(-1)?.window_end
  return end === undefined ? [] : answer.rows.filter((row) => row.window_end === end)
}
