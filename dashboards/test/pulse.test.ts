import { describe, expect, it } from 'vitest'
import type { Partition } from '../src/lib/api'
import { growth, holdUps, lateEvents, perTopic, positions, rate, rates, watermark } from '../src/lib/pulse'
import { view } from './view'

const covered = (topic: string, batch: number, speed: number) =>
  view({
    topic,
    coverage: {
      batch: { version: 1, offsets: { [topic]: { '0': [0, batch] } }, published: '', event_time: null },
      speed: { offsets: { [topic]: { '0': [batch, speed] } } },
    },
  })

describe('positions', () => {
  it('count a topic once, however many views read it', () => {
    expect(positions([covered('tweets', 5, 20), covered('tweets', 7, 18), covered('clicks', 1, 2)])).toEqual(
      new Map([
        ['tweets/0', 20],
        ['clicks/0', 2],
      ]),
    )
  })
  it('come from batch where speed has none', () => {
    const only = covered('tweets', 5, 5)
    only.coverage.speed = null
    expect(positions([only])).toEqual(new Map([['tweets/0', 5]]))
  })
})

it('growth ignores partitions that are new or set back', () => {
  const before = new Map([['a/0', 10], ['a/1', 10]])
  expect(growth(before, new Map([['a/0', 25], ['a/1', 4], ['a/2', 1000]]))).toBe(15)
})

describe('rate', () => {
  const samples = [0, 10, 20, 30].map((events, at) => ({ at: at * 1000, events }))
  it('is what came in the period', () => expect(rate(samples, 2000)).toBe(25))
  it('is nothing without two samples', () => {
    expect(rate([], 2000)).toBe(0)
    expect(rate(samples.slice(0, 1), 2000)).toBe(0)
  })
  it('allows for samples that came late', () =>
    expect(rate([{ at: 0, events: 0 }, { at: 4000, events: 20 }], 5000)).toBe(5))
})

it('rates allow for polls of any length', () =>
  expect(rates([{ at: 0, events: 9 }, { at: 500, events: 5 }, { at: 2500, events: 4 }])).toEqual([10, 2]))

describe('watermark', () => {
  it('is the slowest', () =>
    expect(watermark([view(), view({ watermark: '2017-08-27T00:00:00Z' })])).toBe(Date.parse('2017-08-27T00:00:00Z')))
  it('is unknown before any event', () => expect(watermark([view({ watermark: null })])).toBeNull())
})

it('figures of a topic are not counted once per view', () => {
  const views = [view({ rejected: 3 }), view({ rejected: 4 }), view({ topic: 'clicks', rejected: 2 })]
  expect(perTopic(views, ({ rejected }) => rejected)).toBe(6)
})

describe('what holds a watermark back', () => {
  const is = { watermark: '2017-08-27T02:00:00Z', idle: false, stalled: false, holds_back: false }
  const lines = (...partitions: Partial<Partition>[]) =>
    holdUps([view({ partitions: partitions.map((change, partition) => ({ ...is, partition, ...change })) })])

  it('is nothing while all go on', () => expect(lines({}, {})).toEqual([]))
  it('is nothing worth a word while it is close behind', () =>
    expect(lines({}, { watermark: '2017-08-27T01:59:30Z', holds_back: true })).toEqual([]))
  it('is told with how far it is behind', () =>
    expect(lines({}, { watermark: '2017-08-27T00:00:00Z', holds_back: true })).toEqual([
      'Partition 1 of tweets is 2 h behind the others: the watermark waits for it.',
    ]))
  it('is told where there was no event yet', () =>
    expect(lines({}, { watermark: null, holds_back: true })).toEqual([
      'Partition 1 of tweets has had no event yet: the watermark waits for it.',
    ]))
  it('is told where a partition stalls', () =>
    expect(lines({ stalled: true })).toEqual([
      'Partition 0 of tweets holds records and delivers none: it has stalled, and the watermark waits for it.',
    ]))
  it('is told once, however many views there are', () => {
    const stalled = view({ partitions: [{ ...is, partition: 0, stalled: true }] })
    expect(holdUps([stalled, { ...stalled, name: 'another' }])).toHaveLength(1)
  })
})

it('an event that is late for three views is not three events', () => {
  const three = ['a', 'b', 'c'].map((name) => view({ name, late: 1 }))
  expect(lateEvents(three)).toEqual({ events: 1, least: true })
  expect(lateEvents([view({ late: 2 }), view({ topic: 'clicks', late: 3 })])).toEqual({ events: 5, least: false })
})
