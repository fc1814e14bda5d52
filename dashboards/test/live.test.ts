import { describe, expect, it } from 'vitest'
import type { Cell, Row, Update } from '../src/lib/api'
import { applyUpdate, climbed, keyOf, keyText, ranked, type LiveView } from '../src/lib/live'
import { view } from './view'

const trending = view()

const update = (rows: Row[], change: Partial<Update> = {}): Update => ({
  view: trending.name,
  mode: 'merged',
  exact: true,
  incomplete: false,
  window: { start: '2017-08-27T00:00:00Z', end: '2017-08-27T00:05:00Z', state: 'open' },
  rows,
  sources: { batch: null, speed: null },
  watermark: null,
  late: 0,
  rejected: 0,
  definition: 'sha256:1',
  certain: true,
  confidence: 1,
  total: rows.length,
  truncated: false,
  reset: false,
  removed: [],
  cut: [],
  retracted: [],
  ...change,
})

const row = (hashtag: string, mentions: Cell): Row => ({ hashtag, mentions })
const apply = (...updates: Update[]) =>
  updates.reduce<LiveView | undefined>((live, next) => applyUpdate(trending, live, next), undefined)
const tags = (live: LiveView | undefined) => ranked(trending, live).map(({ hashtag }) => hashtag)

const next = { start: '2017-08-27T00:01:00Z', end: '2017-08-27T00:06:00Z', state: 'open' }

describe('updates', () => {
  it('add rows, change rows and take rows away', () => {
    const live = apply(
      update([row('#a', 3), row('#b', 2)], { reset: true }),
      update([row('#b', 5), row('#c', 4)]),
      update([], { removed: [{ hashtag: '#a' }] }),
    )
    expect(tags(live)).toEqual(['#b', '#c'])
  })

  it('forget everything at a reset', () => {
    expect(tags(apply(update([row('#a', 3)], { reset: true }), update([row('#b', 1)], { reset: true })))).toEqual(['#b'])
  })

  it('keep a row that is removed and comes back in one update', () => {
    const live = apply(update([row('#a', 3)], { reset: true }), update([row('#a', 4)], { removed: [{ hashtag: '#a' }] }))
    expect(ranked(trending, live)).toEqual([row('#a', 4)])
  })

  it('leave the state before them as it was', () => {
    const before = applyUpdate(trending, undefined, update([row('#a', 3)], { reset: true }))
    applyUpdate(trending, before, update([row('#b', 9)]))
    expect(tags(before)).toEqual(['#a'])
  })

  it('carry the newest facts of the answer', () => {
    const live = apply(update([], { reset: true, exact: true }), update([], { exact: false, late: 7 }))
    expect(live?.answer).toMatchObject({ exact: false, late: 7 })
    expect(live?.answer).not.toHaveProperty('rows')
  })
})

describe('ranks', () => {
  it('break ties by key, ascending, and put the unknown last', () => {
    const live = apply(update([row('#z', null), row('#b', 2), row('#a', 2)], { reset: true }))
    expect(tags(live)).toEqual(['#a', '#b', '#z'])
  })

  it('put false before true', () => {
    const flags = view({
      columns: [
        { name: 'paid', type: 'BOOLEAN', role: 'key' },
        { name: 'mentions', type: 'BIGINT', role: 'aggregate', function: 'count' },
      ],
    })
    const rows = [true, null, false].map((paid) => ({ paid, mentions: 1 }))
    const live = applyUpdate(flags, undefined, update(rows, { reset: true }))
    expect(ranked(flags, live).map(({ paid }) => paid)).toEqual([false, true, null])
  })

  it('tell integers beyond 2^53 apart', () => {
    const live = apply(update([row('#a', 9007199254740992n), row('#b', 9007199254740993n), row('#c', 9007199254740991)], { reset: true }))
    expect(tags(live)).toEqual(['#b', '#a', '#c'])
  })

  it('are those of the server for texts beyond the basic plane and times with fractions', () => {
    expect(tags(apply(update([row('\u{1f600}', 1), row('\uff5e', 1), row('\u{1f601}', 1)], { reset: true })))).toEqual(['\uff5e', '\u{1f600}', '\u{1f601}'])
    const last = view({
      columns: [
        { name: 'hashtag', type: 'TEXT', role: 'key' },
        { name: 'mentions', type: 'TIMESTAMP', role: 'aggregate', function: 'max' },
      ],
    })
    const times = ['2024-01-15T10:00:00Z', '2024-01-15T10:00:00.25Z', '2024-01-15T10:00:00.250001Z']
    const live = applyUpdate(last, undefined, update(times.map((time) => row(time, time)), { reset: true }))
    expect(ranked(last, live).map(({ mentions }) => mentions)).toEqual(times.toReversed())
  })

  it('put what JSON has no number for where the server does', () => {
    const spread = view({
      limit: null,
      columns: [
        { name: 'hashtag', type: 'TEXT', role: 'key' },
        { name: 'mentions', type: 'DOUBLE', role: 'aggregate', function: 'sum' },
      ],
    })
    const cells: Cell[] = ['-Infinity', 5, null, 'NaN', 'Infinity', -3]
    const live = applyUpdate(spread, undefined, update(cells.map((cell, at) => row(`#${at}`, cell)), { reset: true }))
    expect(ranked(spread, live).map(({ mentions }) => mentions)).toEqual(['NaN', 'Infinity', 5, -3, '-Infinity', null])
  })

  it('stop at the limit of the view', () => {
    expect(tags(apply(update(['#a', '#b', '#c', '#d'].map((tag) => row(tag, 1)), { reset: true })))).toHaveLength(3)
  })

  it('follow the first aggregate where the view has no order', () => {
    const unordered = view({ order: [], limit: null })
    const live = applyUpdate(unordered, undefined, update([row('#a', 1), row('#b', 2)], { reset: true }))
    expect(ranked(unordered, live).map(({ hashtag }) => hashtag)).toEqual(['#b', '#a'])
  })

  it('are remembered when the window moves on, and compared', () => {
    const live = apply(
      update([row('#a', 3), row('#b', 2)], { reset: true }),
      update([row('#b', 9), row('#a', 8), row('#c', 7)], { reset: true, window: next }),
    )
    const move = (tag: string, rank: number) => climbed(live!.before, keyOf(trending, row(tag, 0)), rank)
    expect([move('#b', 1), move('#a', 2), move('#c', 3)]).toEqual([1, -1, 'new'])
  })

  it('are kept through a reconnection within the window', () => {
    const first = apply(update([row('#a', 1)], { reset: true }), update([row('#a', 2)], { reset: true, window: next }))
    const again = applyUpdate(trending, first, update([row('#a', 2)], { reset: true, window: next }))
    expect(again.before).toBe(first!.before)
  })

  it('say nothing in the first window', () => expect(climbed(null, 'x', 1)).toBe(0))
})

describe('keys', () => {
  const pair = view({
    columns: ['country', 'page'].map((name) => ({ name, type: 'TEXT', role: 'key' })),
  })
  it('do not run into each other', () => {
    expect(keyOf(pair, { country: 'a","b', page: 'c' })).not.toBe(keyOf(pair, { country: 'a', page: 'b","c' }))
  })
  it('may be integers beyond 2^53', () =>
    expect(keyOf(pair, { country: 9007199254740993n, page: 'x' })).not.toBe(keyOf(pair, { country: 9007199254740992n, page: 'x' })))
  it('tell null from the text null', () => {
    expect(keyOf(pair, { country: null, page: 'x' })).not.toBe(keyOf(pair, { country: 'null', page: 'x' }))
  })
  it('tell a user’s sessions apart by their start', () => {
    const visits = view({ columns: [{ name: 'user', type: 'TEXT', role: 'key' }], window: { kind: 'session', gap: 'PT1M' }, limit: null })
    const visit = (start: string, clicks: number): Row => ({ window_start: start, window_end: start, user: 'A', clicks })
    const live = [update([visit('1', 1), visit('2', 1)]), update([visit('2', 5)], { removed: [{ window_start: '1', user: 'A' }] })]
      .reduce<LiveView | undefined>((live, next) => applyUpdate(visits, live, next), undefined)
    expect(ranked(visits, live)).toEqual([visit('2', 5)])
  })
  it('read as text', () => {
    expect(keyText(pair, { country: 'CH', page: '/' })).toBe('CH · /')
    expect(keyText(view({ columns: [] }), {})).toBe('all')
    expect(keyText(view({ columns: [{ name: 'country', type: 'TEXT', role: 'key' }] }), { country: '' })).toBe('')
  })
})
