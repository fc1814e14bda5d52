import { describe, expect, it } from 'vitest'
import type { Row } from '../src/lib/api'
import { combineOf, newestRows, points, range, totals, type Total } from '../src/lib/series'
import { view } from './view'

const MINUTE = 60_000
const at = (minute: number) => Date.parse('2017-08-27T00:00:00Z') + minute * MINUTE
const row = (minute: number, page: string, clicks: number | null): Row => ({
  window_start: new Date(at(minute)).toISOString(),
  window_end: new Date(at(minute + 1)).toISOString(),
  page,
  clicks,
})

const total = (minute: number, value: number): [number, Total] => [at(minute + 1), { start: at(minute), value }]

describe('totals', () => {
  const rows = [row(0, '/a', 3), row(0, '/b', 4), row(1, '/a', 1), row(1, '/b', null)]
  it('add up keys of a window', () => expect(totals(rows, 'clicks', 'sum')).toEqual(new Map([total(0, 7), total(1, 1)])))
  it('take the largest where adding would lie', () =>
    expect(totals(rows, 'clicks', 'max')).toEqual(new Map([total(0, 4), total(1, 1)])))
})

it('only counts and sums add up over keys', () => {
  const by = (name: string) => combineOf({ name: 'x', type: 'BIGINT', role: 'aggregate', function: name })
  expect(['count', 'sum', 'min', 'max', 'avg', 'approx_count_distinct'].map(by)).toEqual(['sum', 'sum', 'min', 'max', 'max', 'max'])
})

describe('points', () => {
  const merged = new Map([total(0, 10), total(1, 8), total(3, 5)])
  const batch = new Map([total(0, 10), total(1, 6)])
  const grid = { from: 0, to: 0, size: MINUTE, step: MINUTE, even: true }
  const point = (minute: number, exact: number, approximate: number) => ({ start: at(minute), end: at(minute + 1), exact, approximate })

  it('splits what batch covers from the rest, and fills windows without rows', () => {
    expect(points(merged, batch, grid, 'sum', 60)).toEqual([point(0, 10, 0), point(1, 6, 2), point(2, 0, 0), point(3, 0, 5)])
  })

  it('does not split what does not add up', () => {
    expect(points(merged, batch, grid, 'max', 60).slice(0, 2)).toEqual([point(0, 10, 0), point(1, 0, 8)])
  })

  it('keeps the last windows', () => {
    expect(points(merged, batch, grid, 'sum', 2).map(({ end }) => end)).toEqual([at(3), at(4)])
  })

  it('makes up no windows where they are not a fixed time apart', () => {
    const days = points(merged, batch, { ...grid, even: false }, 'sum', 2)
    expect(days).toEqual([point(1, 6, 2), point(3, 0, 5)])
  })

  it('is empty without rows', () => expect(points(new Map(), batch, grid, 'sum', 60)).toEqual([]))
})

describe('range', () => {
  it('ends one window after the one that the watermark is in, and holds the wanted number', () => {
    const asked = range(view(), 60)!
    expect(new Date(asked.to).toISOString()).toBe('2017-08-27T00:06:00.000Z')
    expect((asked.to - asked.from - asked.size) / asked.step + 1).toBe(60)
  })
  it('takes a tumbling window’s size for its step', () => {
    const asked = range(view({ window: { kind: 'tumble', size: 'PT1M', slide: 'PT1M' } }), 2)!
    expect([asked.from, asked.to]).toEqual([at(4), at(6)])
  })
  it('ends where windows end, also where they start at an offset or the slide does not divide the size', () => {
    const tumble = range(view({ window: { kind: 'tumble', size: 'PT2M', slide: 'PT2M', offset: 'PT1M' } }), 1)!
    expect([tumble.from, tumble.to]).toEqual([at(5), at(7)])
    const hop = range(view({ window: { kind: 'hop', size: 'PT5M', slide: 'PT2M' } }), 1)!
    expect([hop.from, hop.to]).toEqual([at(2), at(7)])
  })
  it('has a day to spare for the days of a time zone', () => {
    const asked = range(view({ window: { kind: 'tumble', size: 'P1D', slide: 'P1D', zone: 'Europe/Paris' } }), 3)!
    expect(asked.even).toBe(false)
    // Five whole days, wherever they begin, and so at least three that end before the watermark's ends, and that one.
    expect((asked.to - asked.from) / asked.step).toBe(5)
    expect(asked.to).toBeGreaterThan(Date.parse('2017-08-27T22:00:00Z'))
  })
  it('is none without a watermark or a window', () => {
    expect(range(view({ watermark: null }), 60)).toBeNull()
    expect(range(view({ window: null }), 60)).toBeNull()
    expect(range(view({ window: { kind: 'session', gap: 'PT30M' } }), 60)).toBeNull()
  })
})

it('finds the newest window in a range answer', () => {
  expect(newestRows({ rows: [row(0, '/a', 1), row(1, '/a', 2), row(1, '/b', 3)] })).toHaveLength(2)
  expect(newestRows({ rows: [] })).toEqual([])
})
