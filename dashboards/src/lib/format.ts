// Values to text. Times are UTC throughout, as in the API; nothing here returns HTML.
import type { Answer, Cell, Column, Offsets, Partition, Row, ViewWindow } from './api'

const whole = new Intl.NumberFormat('en', { maximumFractionDigits: 0 })
const decimal = new Intl.NumberFormat('en', { maximumSignificantDigits: 6 })
const large = new Intl.NumberFormat('en', { maximumFractionDigits: 2 })
const scientific = new Intl.NumberFormat('en', { notation: 'scientific', maximumSignificantDigits: 6 })
const brief = new Intl.NumberFormat('en', { notation: 'scientific', maximumSignificantDigits: 2 })
const short = new Intl.NumberFormat('en', { notation: 'compact', maximumSignificantDigits: 3 })

/** An integer with all its digits; any other number with those that matter. */
export function number(value: number | bigint): string {
  if (typeof value === 'number' && !Number.isFinite(value)) return String(value)
  if (typeof value === 'bigint' || Number.isSafeInteger(value)) return whole.format(value)
  if (Math.abs(value) >= 1e15 || Math.abs(value) < 1e-6) return scientific.format(value)
  return (Math.abs(value) >= 1e6 ? large : decimal).format(value)
}

/** Four characters or so, for axes and tiles: `9,999` as it is, then `12.3K`, and beyond trillions `1.2E18`. */
export function compact(value: number): string {
  if (Math.abs(value) >= 1e15) return brief.format(value)
  return Math.abs(value) < 10_000 ? decimal.format(Number(value.toPrecision(4))) : short.format(value)
}

/** A time as the server wrote it, with as many digits: `2017-08-27 00:05:30.25`. */
export const time = (iso: string): string => iso.replace('T', ' ').replace('Z', '')

export function cell(value: Cell | undefined, type = ''): string {
  if (value === null || value === undefined) return '–'
  if (typeof value === 'number' || typeof value === 'bigint') return number(value)
  return type === 'TIMESTAMP' ? time(String(value)) : String(value)
}

/** A key as it is: two keys that differ never look alike. */
export function keyCell(value: Cell | undefined, type = ''): string {
  if (value === null || value === undefined) return 'null'
  return type === 'TIMESTAMP' ? time(String(value)) : String(value)
}

/** A value with nothing left out, for machines. */
export const plain = (value: Cell | undefined): string => (value === null || value === undefined ? '' : String(value))

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

/** The day that a calendar shows in a time zone. */
function dayIn(zone: string, ms: number): string {
  const parts = new Intl.DateTimeFormat('en', { timeZone: zone, year: 'numeric', month: '2-digit', day: '2-digit' }).formatToParts(ms)
  const part = (type: string) => parts.find((found) => found.type === type)?.value
  return `${part('year')}-${part('month')}-${part('day')}`
}

/** `00:00 – 00:05`, with a day where a window spans two; the days themselves where it is made of a time zone's. */
export function windowTimes(start: number, end: number, zone?: string): string {
  if (zone) {
    const [first, last] = [dayIn(zone, start), dayIn(zone, end - 1)]
    return first === last ? first : `${first} – ${last}`
  }
  const seconds = start % 60_000 !== 0 || end % 60_000 !== 0
  const tail = day(start) === day(end) ? clock(end, seconds) : `${day(end)} ${clock(end, seconds)}`
  return `${clock(start, seconds)} – ${tail}`
}

/** `2017-08-27 00:00 – 00:05 UTC`, or `2024-03-31 in Europe/Paris`. */
export function windowName(start: number, end: number, zone?: string): string {
  return zone ? `${windowTimes(start, end, zone)} in ${zone}` : `${day(start)} ${windowTimes(start, end)} UTC`
}

export function windowLabel(window: Answer['window'], zone?: string): string {
  const start = Date.parse(window?.start ?? '')
  const end = Date.parse(window?.end ?? '')
  return Number.isNaN(start) || Number.isNaN(end) ? 'all of time' : windowName(start, end, zone)
}

/** What windows a view has, in words. */
export function windowShape(window: ViewWindow | null): string {
  if (!window) return 'none: all of time'
  const { kind, size = '', slide = size, offset, zone, gap } = window
  if (kind === 'session') return `session, ended by ${duration(gap ?? '')} without an event`
  const each = slide === size ? '' : ` every ${duration(slide)}`
  return `${kind}, ${duration(size)}${each}${offset ? `, ${duration(offset)} later than the full ${duration(slide)}` : ''}${zone ? `, by the calendar of ${zone}` : ''}`
}

/** `0: 2017-08-27 00:04:31 · 1: idle · 2: no event yet, waited for`; of several topics with their names. */
export function partitions(all: Partition[]): string {
  const isOne = new Set(all.map(({ topic }) => topic)).size <= 1
  const each = all.map(({ topic, partition, watermark, idle, stalled, holds_back }) => {
    const facts = [watermark ? moment(watermark) : 'no event yet', idle && 'idle', stalled && 'stalled', holds_back && 'waited for']
    return `${isOne ? '' : `${topic} `}${partition}: ${facts.filter(Boolean).join(', ')}`
  })
  return each.join(' · ') || 'none'
}

/** How surely bounds hold. */
export const confidence = (probability: number): string =>
  probability >= 1 ? 'hold for certain' : `each holds with a probability of ${number(100 * probability)} %`

/**
 * `0: 0–1,200 · 1: 0–1,187`: per partition, from the first offset up to, not including, the next. Where there are many topics,
 * each is named.
 */
export function offsets(offsets: Offsets | undefined): string {
  const topics = Object.entries(offsets ?? {})
  const parts = topics.flatMap(([topic, ranges]) => {
    const ordered = Object.entries(ranges).sort(([a], [b]) => Number(a) - Number(b))
    const place = (partition: string) => (topics.length > 1 ? `${topic} ${partition}` : partition)
    return ordered.map(([partition, [first, next]]) => `${place(partition)}: ${whole.format(first)}–${whole.format(next)}`)
  })
  return parts.join(' · ') || 'none'
}

export interface Bounds {
  lower: Cell
  upper: Cell
}

/** The bounds of an aggregate where they say more than its value does, otherwise `null`. */
export function bounds(row: Row, column: string): Bounds | null {
  const value = row[column] ?? null
  const [lower, upper] = [row[`${column}_lower`], row[`${column}_upper`]]
  if (lower === undefined && upper === undefined) return null
  return (lower ?? null) === value && (upper ?? null) === value ? null : { lower: lower ?? null, upper: upper ?? null }
}

export function boundsText({ lower, upper }: Bounds, type = ''): string {
  if (lower === null && upper === null) return 'bounds unknown'
  const text = (bound: Cell) => (bound === null ? 'unknown' : cell(bound, type))
  const isNarrow = typeof lower !== 'string' && typeof upper !== 'string' && !text(upper).startsWith('-')
  return isNarrow ? `${text(lower)}–${text(upper)}` : `${text(lower)} – ${text(upper)}`
}

/** The number that a cell of a numeric column holds: what JSON has no number for is a text, `Infinity` or `NaN`. */
export function figure(value: Cell | undefined): number | bigint | null {
  if (typeof value === 'number' || typeof value === 'bigint') return value
  return typeof value === 'string' ? Number(value) : null
}

/** A figure as a length on the screen, where the last digits of a large one don't show. */
export function toNumber(value: Cell | undefined): number | null {
  const number = typeof value === 'bigint' ? Number(value) : value
  return typeof number === 'number' && Number.isFinite(number) ? number : null
}

/** The server's order of numbers: there is one NaN, greater than all others. */
export function compareFigures(a: number | bigint, b: number | bigint): number {
  if (a < b) return -1
  if (a > b) return 1
  return Number(Number.isNaN(a)) - Number(Number.isNaN(b))
}

export const isNumeric = ({ type }: Pick<Column, 'type'>): boolean => type === 'BIGINT' || type === 'DOUBLE'

/** Why an answer isn't exact, in words that stand beside it; none if it is. */
export function reasons(answer: Pick<Answer, 'exact' | 'incomplete' | 'late' | 'confidence'>): string[] {
  if (answer.exact) return []
  const known = [
    answer.incomplete && 'a range of the log is missing',
    answer.late > 0 && `${plural(answer.late, 'event')} came too late`,
    answer.confidence < 1 && 'some figures are sketched',
  ].filter((reason) => reason !== false)
  return known.length > 0 ? known : ['figures lie between bounds']
}

/** `first 1,000 of 5,321` where not all rows are there. */
export const cut = (shown: number, total: number): string => (shown < total ? `first ${number(shown)} of ${number(total)}` : number(total))

export const columnsOf = (columns: Column[], role: string): Column[] => columns.filter((column) => column.role === role)

/** `3 events`, `1 event`. */
export const plural = (count: number, noun: string): string => `${number(count)} ${noun}${count === 1 ? '' : 's'}`

/** The `clip-path` that leaves a bar from one share of it to another (0 to 1): unlike scaling, it keeps a hatching's slant. */
export function stretch(from: number, to: number): string {
  const percent = (share: number) => (100 * Math.max(0, Math.min(1, share))).toFixed(2)
  return `inset(0 ${percent(1 - to)}% 0 ${percent(from)}%)`
}
