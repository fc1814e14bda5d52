import { describe, expect, it } from 'vitest'
import type { Row } from '../src/lib/api'
import { combineOf, newestRows, points, range, totals } from '../src/lib/series'
import { view } from './view'

const MINUTE = 60_000
const at = (minute: number) => Date.parse('2017-08-27T00:00:00Z') + minute * MINUTE
const row = (minute: number, page: string, clicks: number | null): Row => ({
  window_start: new Date(at(minute)).toISOString(),
  window_end: new Date(at(minute + 1)).toISOString(),
  page,
  clicks,
})

describe('totals', () => {
  const rows = [row(0, '/a', 3), row(0, '/b', 4), row(1, '/a', 1), row(1, '/b', null)]
  it('add up keys of a window', () => expect(totals(rows, 'clicks', 'sum')).toEqual(new Map([[at(1), 7], [at(2), 1]])))
  it('take the largest where adding would lie', () =>
    expect(totals(rows, 'clicks', 'max')).toEqual(new Map([[at(1), 4], [at(2), 1]])))
})

it('only counts and sums add up over keys', () => {
  const by = (name: string) => combineOf({ name: 'x', type: 'BIGINT', role: 'aggregate', function: name })
  expect(['count', 'sum', 'min', 'max', 'avg', 'approx_count_distinct'].map(by)).toEqual(['sum', 'sum', 'min', 'max', 'max', 'max'])
})

describe('points', () => {
  const merged = new Map([[at(0), 10], [at(1), 8], [at(3), 5]])
  const batch = new Map([[at(0), 10], [at(1), 6]])

  it('splits what batch covers from the rest, and fills windows without rows', () => {
    expect(points(merged, batch, MINUTE, 'sum', 60)).toEqual([
      { end: at(0), exact: 10, approximate: 0 },
      { end: at(1), exact: 6, approximate: 2 },
      { end: at(2), exact: 0, approximate: 0 },
      { end: at(3), exact: 0, approximate: 5 },
    ])
  })

  it('does not split what does not add up', () => {
    expect(points(merged, batch, MINUTE, 'max', 60).slice(0, 2)).toEqual([
      { end: at(0), exact: 10, approximate: 0 },
      { end: at(1), exact: 0, approximate: 8 },
    ])
  })

  it('keeps the last windows', () => {
    expect(points(merged, batch, MINUTE, 'sum', 2).map(({ end }) => end)).toEqual([at(2), at(3)])
  })

  it('is empty without rows', () => expect(points(new Map(), batch, MINUTE, 'sum', 60)).toEqual([]))
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
  it('is none without a watermark or a window', () => {
    expect(range(view({ watermark: null }), 60)).toBeNull()
    expect(range(view({ window: null }), 60)).toBeNull()
  })
})

it('finds the newest window in a range answer', () => {
  expect(newestRows({ rows: [row(0, '/a', 1), row(1, '/a', 2), row(1, '/b', 3)] })).toHaveLength(2)
  expect(newestRows({ rows: [] })).toEqual([])
})
