// Sessions have no grid: each has its own start and end, and what to ask for follows from the gap and the watermark.
import type { Row, ViewDetail } from './api'
import { day, durationMs, time } from './format'

const ms = (row: Row, name: string) => Date.parse(String(row[name]))

/** Those that end last first. */
export const newestFirst = (rows: Row[]): Row[] =>
  [...rows].sort((a, b) => ms(b, 'window_end') - ms(a, 'window_end') || ms(b, 'window_start') - ms(a, 'window_start'))

/** Where a session starts, where it ends (the day only if it is another), and how long it lasts, in milliseconds. */
export function sessionTimes(row: Row): { start: string; until: string; lasts: number } {
  const [from, to] = [ms(row, 'window_start'), ms(row, 'window_end')]
  const [start, end] = [time(String(row.window_start)), time(String(row.window_end))]
  return { start, until: day(from) === day(to) ? end.slice(end.indexOf(' ') + 1) : end, lasts: to - from }
}

const GAPS = 12

/** The range to ask for: of the sessions that have ended within some gaps before the watermark. */
export function ended(view: ViewDetail): { from: number; to: number } | null {
  const gap = durationMs(view.window?.gap ?? '')
  const to = Date.parse(view.watermark ?? '')
  return gap === null || Number.isNaN(to) ? null : { from: to - GAPS * gap, to }
}
