// Totals of one aggregate per window, split into the part that batch has made exact and the rest.
import type { Answer, Column, Row, ViewDetail } from './api'
import { durationMs, toNumber } from './format'

export interface Point {
  start: number // milliseconds
  exact: number
  approximate: number
}

export interface Series {
  step: number // milliseconds from one window's start to the next
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

export type Totals = Map<number, number>

export function totals(rows: Row[], column: string, combine: Combine): Totals {
  const byStart: Totals = new Map()
  for (const row of rows) {
    const start = Date.parse(String(row.window_start))
    const value = toNumber(row[column])
    if (Number.isNaN(start) || value === null) continue
    const sum = byStart.get(start)
    byStart.set(start, sum === undefined ? value : COMBINE[combine](sum, value))
  }
  return byStart
}

export function series(merged: Totals, batch: Totals, step: number, combine: Combine, windows: number): Series {
  if (merged.size === 0) return { step, points: [] }
  const starts = [...merged.keys()]
  const last = starts.reduce((a, b) => Math.max(a, b))
  const first = Math.max(starts.reduce((a, b) => Math.min(a, b)), last - (windows - 1) * step)
  const points: Point[] = []
  for (let start = first; start <= last; start += step) {
    const all = merged.get(start) ?? 0
    const done = batch.get(start) ?? 0
    if (combine === 'sum') points.push({ start, exact: Math.min(done, all), approximate: Math.max(0, all - done) })
    else points.push(done === all ? { start, exact: all, approximate: 0 } : { start, exact: 0, approximate: all })
  }
  return { step, points }
}

/** The range to ask for: the last `windows` windows up to the watermark, and those that are open beyond it. */
export function range(view: ViewDetail, windows: number): { from: number; to: number; step: number } | null {
  const size = durationMs(view.window?.size ?? '')
  const step = durationMs(view.window?.slide ?? '') ?? size
  const watermark = Date.parse(view.watermark ?? '')
  if (size === null || step === null || Number.isNaN(watermark)) return null
  const newest = Math.floor(watermark / step) * step
  return { from: newest - (windows - 1) * step, to: newest + size + 2 * step, step }
}

/** The rows of the newest window in a range answer. */
export function newestRows(answer: Pick<Answer, 'rows'>): Row[] {
  const end = answer.rows.at(-1)?.window_end
  return end === undefined ? [] : answer.rows.filter((row) => row.window_end === end)
}
