import { describe, expect, it } from 'vitest'
import type { Column, Row } from '../src/lib/api'
import { combineOf, points, range, readings, type Figure, type Point, type Reading } from '../src/lib/series'
import { view } from './view'

const MINUTE = 60_000
const at = (minute: number) => Date.parse('2017-08-27T00:00:00Z') + minute * MINUTE
const row = (minute: number, page: string, clicks: number | null): Row => ({
  window_start: new Date(at(minute)).toISOString(),
  window_end: new Date(at(minute + 1)).toISOString(),
  page,
  clicks,
})

const reading = (minute: number, value: Figure | null, unsure = false): [number, Reading] => [at(minute + 1), { start: at(minute), value, unsure }]
const column = (change: Partial<Column>): Column => ({ name: 'x', type: 'BIGINT', role: 'aggregate', ...change })

describe('readings', () => {
  const keyed = [row(0, '/a', 3), row(0, '/b', 4), row(1, '/a', 1), row(1, '/b', null)]
  it('are the server’s totals where figures add up', () =>
    expect(readings([row(0, '', 7), row(1, '', null)], 'clicks', 'sum')).toEqual(new Map([reading(0, 7), reading(1, null)])))
  it('take the extreme of all keys where they don’t', () => {
    expect(readings(keyed, 'clicks', 'max')).toEqual(new Map([reading(0, 4), reading(1, 1)]))
    expect(readings(keyed, 'clicks', 'min').get(at(1))?.value).toBe(3)
  })
  it('find the largest integer beyond 2^53', () => {
    const large = [9007199254740993n, 9007199254740992n].map((clicks) => ({ ...row(0, '/a', 0), clicks }))
    expect(readings(large, 'clicks', 'max').get(at(1))?.value).toBe(9007199254740993n)
  })
  it('read what JSON has no number for', () => {
    const cells = (values: (string | number)[]) => values.map((clicks) => ({ ...row(0, '', 0), clicks }))
    expect(readings(cells(['Infinity']), 'clicks', 'sum').get(at(1))?.value).toBe(Infinity)
    expect(readings(cells([5, 'NaN', 'Infinity']), 'clicks', 'max').get(at(1))?.value).toBeNaN()
    expect(readings(cells(['NaN', 5, '-Infinity']), 'clicks', 'min').get(at(1))?.value).toBe(-Infinity)
  })
  it('are unsure where a bound is another value', () => {
    const bounded = { ...row(0, '', 7), clicks_lower: 7, clicks_upper: 9 }
    expect(readings([bounded], 'clicks', 'sum').get(at(1))?.unsure).toBe(true)
    expect(readings([{ ...bounded, clicks_upper: 7 }], 'clicks', 'sum').get(at(1))?.unsure).toBe(false)
  })
})

it('only what the server calls additive adds up over keys: distinct counts don’t', () => {
  expect(combineOf(column({ function: 'count', additive: true }))).toBe('sum')
  expect(combineOf(column({ function: 'count', distinct: true, additive: false }))).toBe('max')
  expect(combineOf(column({ function: 'min', additive: false }))).toBe('min')
})

describe('points', () => {
  const merged = new Map([reading(0, 10), reading(1, 8), reading(3, 5)])
  const batch = new Map([reading(0, 10), reading(1, 6)])
  const grid = { from: 0, to: 0, size: MINUTE, step: MINUTE, even: true }
  const point = (minute: number, exact: Figure | null, approximate: Figure | null, total: Figure | null): Point => ({
    start: at(minute),
    end: at(minute + 1),
    exact,
    approximate,
    total,
    unsure: false,
  })

  it('tell what batch has said from what the speed layer adds, and fill windows without rows', () => {
    expect(points(merged, batch, grid, 'sum', 60)).toEqual([
      point(0, 10, 0, 10),
      point(1, 6, 2, 8),
      point(2, 0, 0, 0),
      point(3, 0, 5, 5),
    ])
  })
  it('leave what batch has said as it was where the speed layer takes away from it', () =>
    expect(points(new Map([reading(0, 70)]), new Map([reading(0, 100)]), grid, 'sum', 60)).toEqual([point(0, 100, -30, 70)]))
  it('say nothing of what is added to a sum that batch could not say', () => {
    expect(points(new Map([reading(0, 5)]), new Map([reading(0, null)]), grid, 'sum', 60)).toEqual([point(0, null, null, 5)])
    expect(points(new Map([reading(0, Infinity)]), new Map([reading(0, Infinity)]), grid, 'sum', 60)).toEqual([point(0, Infinity, null, Infinity)])
    expect(points(new Map([reading(0, Infinity)]), new Map([reading(0, 1)]), grid, 'sum', 60)).toEqual([point(0, 1, Infinity, Infinity)])
  })
  it('call nothing exact before there is a version', () =>
    expect(points(new Map([reading(0, -1081)]), null, grid, 'sum', 60)).toEqual([point(0, null, -1081, -1081)]))
  it('do not split what does not add up', () =>
    expect(points(merged, batch, grid, 'max', 60).slice(0, 3)).toEqual([
      point(0, 10, null, 10),
      point(1, 6, null, 8),
      point(2, null, null, null),
    ]))
  it('keep the last windows', () => expect(points(merged, batch, grid, 'sum', 2).map(({ end }) => end)).toEqual([at(3), at(4)]))
  it('make up no windows where they are not a fixed time apart', () =>
    expect(points(merged, batch, { ...grid, even: false }, 'sum', 2)).toEqual([point(1, 6, 2, 8), point(3, 0, 5, 5)]))
  it('are none without rows', () => expect(points(new Map(), null, grid, 'sum', 60)).toEqual([]))

  it('are exact and approximate parts that make the total, for any integers, and call exact only what batch said', () => {
    let seed = 1
    const random = () => (seed = (seed * 48271) % 2147483647) / 2147483647
    const any = (): Figure => {
      const wide = BigInt(Math.floor(random() * 2 ** 31)) * BigInt(Math.floor(random() * 2 ** 31)) - 2n ** 61n
      const value = random() < 0.5 ? BigInt(Math.floor(random() * 2000) - 1000) : wide
      return Number.isSafeInteger(Number(value)) ? Number(value) : value
    }
    for (let round = 0; round < 2000; round += 1) {
      const [total, said] = [any(), any()]
      const [one] = points(new Map([reading(0, total)]), new Map([reading(0, said)]), grid, 'sum', 1)
      expect(one!.exact).toBe(said)
      expect(one!.total).toBe(total)
      expect(BigInt(one!.exact!) + BigInt(one!.approximate!)).toBe(BigInt(total))
    }
  })
})

describe('range', () => {
  it('ends one window after the one that the watermark is in, and holds the wanted number', () => {
    const asked = range(view(), 60)!
    expect(new Date(asked.to).toISOString()).toBe('2017-08-27T00:06:00.000Z')
    expect((asked.to - asked.from - asked.size) / asked.step + 1).toBe(60)
  })
  it('ends where the newest event is, where the watermark is far behind', () => {
    expect(range(view(), 60, at(90))!.to).toBe(at(90))
    expect(range(view(), 60, at(3))!.to).toBe(at(6))
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
