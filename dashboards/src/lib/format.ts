// Values to text. Times are UTC throughout, as in the API; nothing here returns HTML.
import type { Answer, Cell, Column, Offsets } from './api'

const whole = new Intl.NumberFormat('en', { maximumFractionDigits: 0 })
const decimal = new Intl.NumberFormat('en', { maximumSignificantDigits: 6 })
const short = new Intl.NumberFormat('en', { notation: 'compact', maximumSignificantDigits: 3 })

export function number(value: number): string {
  return Number.isInteger(value) || Math.abs(value) >= 1e6 ? whole.format(value) : decimal.format(value)
}

/** Four characters or so, for axes and tiles: `9,999` as it is, then `12.3K`. */
export function compact(value: number): string {
  return Math.abs(value) < 10_000 ? decimal.format(Number(value.toPrecision(4))) : short.format(value)
}

export function cell(value: Cell | undefined): string {
  if (value === null || value === undefined) return '–'
  return typeof value === 'number' ? number(value) : String(value)
}

/** `trending_hashtags` → `Trending hashtags`. */
export function title(name: string): string {
  const words = name.replaceAll(/[_-]+/g, ' ').trim()
  return words ? words[0]!.toUpperCase() + words.slice(1) : name
}

/** An ISO 8601 duration of fixed length in milliseconds, `null` if it is none. */
export function durationMs(iso: string): number | null {
  const match = /^P(?:(\d+)W)?(?:(\d+)D)?(?:T(?:(\d+)H)?(?:(\d+)M)?(?:(\d+(?:\.\d+)?)S)?)?$/.exec(iso)
  if (!match) return null
  const [w, d, h, m, s] = match.slice(1).map((part) => Number(part ?? 0)) as [number, number, number, number, number]
  const total = ((((w * 7 + d) * 24 + h) * 60 + m) * 60 + s) * 1000
  return total > 0 ? total : null
}

const STEPS: [unit: string, ms: number][] = [
  ['y', 365.25 * 86_400_000],
  ['d', 86_400_000],
  ['h', 3_600_000],
  ['min', 60_000],
  ['s', 1000],
]

/** The two largest units that matter: `850 ms`, `4.2 s`, `3 min 20 s`, `9 y 41 d`. */
export function span(ms: number): string {
  if (ms < 0) return `−${span(-ms)}`
  if (ms < 1000) return `${Math.round(ms)} ms`
  if (ms < 10_000) return `${(Math.floor(ms / 100) / 10).toString()} s`
  const at = STEPS.findIndex(([, size]) => ms >= size)
  const [unit, size] = STEPS[at]!
  const head = Math.floor(ms / size)
  const next = STEPS[at + 1]
  const rest = next && head < 100 ? Math.floor((ms - head * size) / next[1]) : 0
  return `${whole.format(head)} ${unit}${next && rest > 0 ? ` ${rest} ${next[0]}` : ''}`
}

/** `PT5M` → `5 min`. */
export function duration(iso: string): string {
  const ms = durationMs(iso)
  return ms === null ? iso : span(ms)
}

const iso = (ms: number) => new Date(ms).toISOString()

/** `00:05`, or `00:05:30` where the seconds matter. */
export function clock(ms: number, seconds = ms % 60_000 !== 0): string {
  return iso(ms).slice(11, seconds ? 19 : 16)
}

export const day = (ms: number): string => iso(ms).slice(0, 10)

/** A moment in full: `2017-08-27 00:05:30`. */
export function moment(time: string | null | undefined): string {
  const ms = time ? Date.parse(time) : NaN
  return Number.isNaN(ms) ? '–' : `${day(ms)} ${clock(ms, true)}`
}

/** `2017-08-27 00:00 – 00:05`, the day once unless the window spans two. */
export function windowLabel(window: Answer['window']): string {
  const start = Date.parse(window?.start ?? '')
  const end = Date.parse(window?.end ?? '')
  if (Number.isNaN(start) || Number.isNaN(end)) return 'all of time'
  const seconds = start % 60_000 !== 0 || end % 60_000 !== 0
  const tail = day(start) === day(end) ? clock(end, seconds) : `${day(end)} ${clock(end, seconds)}`
  return `${day(start)} ${clock(start, seconds)} – ${tail}`
}

/** `0: 0–1,200 · 1: 0–1,187`: per partition, from the first offset up to, not including, the next. */
export function offsets(ranges: Offsets | undefined): string {
  const parts = Object.entries(ranges ?? {}).sort(([a], [b]) => Number(a) - Number(b))
  if (parts.length === 0) return 'none'
  return parts.map(([partition, [first, next]]) => `${partition}: ${whole.format(first)}–${whole.format(next)}`).join(' · ')
}

/** Offsets that neither layer contributed: between where batch stops and speed begins. */
export function gaps(sources: Answer['sources']): Offsets {
  const found: Offsets = {}
  for (const [partition, [first]] of Object.entries(sources.speed?.offsets ?? {})) {
    const covered = sources.batch?.offsets[partition]?.[1]
    if (covered !== undefined && covered < first) found[partition] = [covered, first]
  }
  return found
}

export interface Bounds {
  lower: number | null
  upper: number | null
}

/** The bounds of an aggregate where they say more than its value does, otherwise `null`. */
export function bounds(row: Record<string, Cell>, column: string): Bounds | null {
  const value = row[column]
  if (!(`${column}_lower` in row) && !(`${column}_upper` in row)) return null
  const lower = toNumber(row[`${column}_lower`])
  const upper = toNumber(row[`${column}_upper`])
  return lower === value && upper === value ? null : { lower, upper }
}

export const boundsText = ({ lower, upper }: Bounds): string =>
  `${lower === null ? 'unknown' : number(lower)}–${upper === null ? 'unknown' : number(upper)}`

export function toNumber(value: Cell | undefined): number | null {
  return typeof value === 'number' && Number.isFinite(value) ? value : null
}

export const columnsOf = (columns: Column[], role: string): Column[] => columns.filter((column) => column.role === role)

/** `3 events`, `1 event`. */
export const plural = (count: number, noun: string): string => `${number(count)} ${noun}${count === 1 ? '' : 's'}`

/** The `clip-path` that leaves a bar from one share of it to another (0 to 1): unlike scaling, it keeps a hatching's slant. */
export function stretch(from: number, to: number): string {
  const percent = (share: number) => (100 * Math.max(0, Math.min(1, share))).toFixed(2)
  return `inset(0 ${percent(1 - to)}% 0 ${percent(from)}%)`
}
