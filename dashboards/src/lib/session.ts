// Sessions have no grid: each has its own start and end, and what to ask for follows from the gap and the watermark.
import type { Row, ViewDetail } from './api'
import { clock, day, durationMs, moment } from './format'

const time = (row: Row, name: string) => Date.parse(String(row[name]))

/** Those that end last first. */
export const newestFirst = (rows: Row[]): Row[] =>
  [...rows].sort((a, b) => time(b, 'window_end') - time(a, 'window_end') || time(b, 'window_start') - time(a, 'window_start'))

/** Where a session starts, where it ends (the day only if it is another), and how long it lasts, in milliseconds. */
export function sessionTimes(row: Row): { start: string; until: string; lasts: number } {
  const [from, to] = [time(row, 'window_start'), time(row, 'window_end')]
  const start = String(row.window_start)
  return { start, until: day(from) === day(to) ? clock(to, true) : moment(String(row.window_end)), lasts: to - from }
}

const GAPS = 12

/** The range to ask for: of the sessions that have ended within some gaps before the watermark. */
export function ended(view: ViewDetail): { from: number; to: number } | null {
  const gap = durationMs(view.window?.gap ?? '')
  const to = Date.parse(view.watermark ?? '')
  return gap === null || Number.isNaN(to) ? null : { from: to - GAPS * gap, to }
}
