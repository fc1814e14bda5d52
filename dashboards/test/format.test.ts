import { describe, expect, it } from 'vitest'
import type { ViewWindow } from '../src/lib/api'
import * as format from '../src/lib/format'

describe('spans of time', () => {
  it.each([
    [0, '0 ms'],
    [850, '850 ms'],
    [4200, '4.2 s'],
    [9990, '9.9 s'],
    [59_999, '59 s'],
    [60_000, '1 min'],
    [200_000, '3 min 20 s'],
    [3_600_000, '1 h'],
    [93_600_000, '1 d 2 h'],
    [-4200, '−4.2 s'],
  ])('%i ms is %s', (ms, expected) => expect(format.span(ms)).toBe(expected))

  it('reads years where data is old', () => expect(format.span(9 * 365.25 * 86_400_000 + 41 * 86_400_000)).toBe('9 y 41 d'))

  it.each([
    ['PT5M', 300_000],
    ['PT1H30M', 5_400_000],
    ['P1D', 86_400_000],
    ['P1W', 604_800_000],
    ['PT0.5S', 500],
    ['P1M', null],
    ['PT0S', null],
    ['five minutes', null],
  ])('%s lasts %s ms', (iso, ms) => expect(format.durationMs(iso)).toBe(ms))

  it('leaves a duration that it cannot read as it is', () => expect(format.duration('P1M')).toBe('P1M'))
})

describe('windows', () => {
  const label = (start: string, end: string) => format.windowLabel({ start, end })
  it('name the day once', () =>
    expect(label('2017-08-27T00:00:00Z', '2017-08-27T00:05:00Z')).toBe('2017-08-27 00:00 – 00:05 UTC'))
  it('name both days where they span two', () =>
    expect(label('2017-08-26T23:58:00Z', '2017-08-27T00:03:00Z')).toBe('2017-08-26 23:58 – 2017-08-27 00:03 UTC'))
  it('show seconds where they matter', () =>
    expect(label('2017-08-27T00:00:10Z', '2017-08-27T00:00:20Z')).toBe('2017-08-27 00:00:10 – 00:00:20 UTC'))
  it('are the days that a time zone has, however long', () => {
    const paris = (start: string, end: string) => format.windowLabel({ start, end }, 'Europe/Paris')
    expect(paris('2024-03-30T23:00:00Z', '2024-03-31T22:00:00Z')).toBe('2024-03-31 in Europe/Paris')
    expect(paris('2024-10-26T22:00:00Z', '2024-10-27T23:00:00Z')).toBe('2024-10-27 in Europe/Paris')
    expect(paris('2024-03-28T23:00:00Z', '2024-04-04T22:00:00Z')).toBe('2024-03-29 – 2024-04-04 in Europe/Paris')
  })
  it('are all of time where there is none', () => expect(format.windowLabel(null)).toBe('all of time'))
})

it.each([
  [null, 'none: all of time'],
  [{ kind: 'tumble', size: 'PT5M', slide: 'PT5M' }, 'tumble, 5 min'],
  [{ kind: 'hop', size: 'PT10M', slide: 'PT4M', offset: 'PT1M' }, 'hop, 10 min every 4 min, 1 min later than the full 4 min'],
  [{ kind: 'tumble', size: 'P1D', slide: 'P1D', zone: 'Europe/Paris' }, 'tumble, 1 d, by the calendar of Europe/Paris'],
  [{ kind: 'session', gap: 'PT30M' }, 'session, ended by 30 min without an event'],
] as [ViewWindow | null, string][])('%j reads as %s', (window, expected) => expect(format.windowShape(window)).toBe(expected))

it('partitions are named with what is to be said of them', () => {
  const is = { watermark: '2017-08-27T00:04:31Z', idle: false, stalled: false, holds_back: false }
  expect(
    format.partitions([
      { ...is, partition: 0 },
      { ...is, partition: 1, idle: true },
      { ...is, partition: 2, watermark: null, stalled: true, holds_back: true },
    ]),
  ).toBe('0: 2017-08-27 00:04:31 · 1: 2017-08-27 00:04:31, idle · 2: no event yet, stalled, waited for')
  const two = [{ ...is, topic: 'tweets', partition: 0 }, { ...is, topic: 'clicks', partition: 0 }]
  expect(format.partitions(two)).toBe('tweets 0: 2017-08-27 00:04:31 · clicks 0: 2017-08-27 00:04:31')
  expect(format.partitions([])).toBe('none')
})

it('bounds hold for certain or with a probability', () => {
  expect(format.confidence(1)).toBe('hold for certain')
  expect(format.confidence(0.99)).toBe('each holds with a probability of 99 %')
})

describe('figures', () => {
  it.each([
    [1234567, '1,234,567'],
    [0.5, '0.5'],
    [1234.56789, '1,234.57'],
    [1234567.891, '1,234,567.89'],
    [9007199254740993n, '9,007,199,254,740,993'],
    [-9223372036854775808n, '-9,223,372,036,854,775,808'],
    [1e300, '1E300'],
    [-Infinity, '-Infinity'],
    [NaN, 'NaN'],
  ])('%s is %s', (value, expected) => expect(format.number(value)).toBe(expected))
  it.each([
    [9999, '9,999'],
    [12_345, '12.3K'],
    [-1.25e18, '-1.3E18'],
    [0.125, '0.125'],
  ])('%d is %s in short', (value, expected) => expect(format.compact(value)).toBe(expected))
  it('show absence as a dash and text as it is', () => {
    expect(format.cell(null)).toBe('–')
    expect(format.cell(undefined)).toBe('–')
    expect(format.cell('<b>')).toBe('<b>')
    expect(format.cell(false)).toBe('false')
  })
  it('are never rounded as keys', () => {
    expect([0.1234567, 12345, 9007199254740993n, true].map((key) => format.keyCell(key))).toEqual(['0.1234567', '12345', '9007199254740993', 'true'])
    expect(format.keyCell('2024-01-15T10:00:00.25Z', 'TIMESTAMP')).toBe('2024-01-15 10:00:00.25')
    expect(format.keyCell('', 'TEXT')).toBe('')
  })
  it('have one NaN, above all others', () => {
    const figures = ['NaN', 5, 'Infinity', 9007199254740993n, '-Infinity', 'NaN'].map((cell) => format.figure(cell)!)
    expect(figures.sort(format.compareFigures)).toEqual([-Infinity, 5, 9007199254740993n, Infinity, NaN, NaN])
    expect(format.figure(null)).toBeNull()
  })
})

describe('bounds', () => {
  it('are silent where they equal the value or do not exist', () => {
    expect(format.bounds({ n: 5, n_lower: 5, n_upper: 5 }, 'n')).toBeNull()
    expect(format.bounds({ n: 5 }, 'n')).toBeNull()
  })
  it('speak where they differ', () => {
    const found = format.bounds({ n: 431, n_lower: 431, n_upper: 1433 }, 'n')
    expect(found && format.boundsText(found)).toBe('431–1,433')
  })
  it('are silent of texts and times that are certain', () => {
    const last = '2024-01-15T10:00:00.25Z'
    expect(format.bounds({ t: last, t_lower: last, t_upper: last }, 't')).toBeNull()
    expect(format.bounds({ t: 'x', t_lower: 'x', t_upper: 'x' }, 't')).toBeNull()
    expect(format.bounds({ t: null, t_lower: null, t_upper: null }, 't')).toBeNull()
  })
  it('are texts and times where these differ', () => {
    const found = format.bounds({ t: 'a', t_lower: '2024-01-15T10:00:00Z', t_upper: '2024-01-15T10:00:00.25Z' }, 't')
    expect(found && format.boundsText(found, 'TIMESTAMP')).toBe('2024-01-15 10:00:00 – 2024-01-15 10:00:00.25')
    expect(format.boundsText({ lower: null, upper: null })).toBe('bounds unknown')
  })
  it('keep a minus apart from the dash', () => expect(format.boundsText({ lower: -5, upper: -3 })).toBe('-5 – -3'))
  it('are exact beyond 2^53', () =>
    expect(format.boundsText({ lower: 9007199254740992n, upper: 9007199254740993n })).toBe('9,007,199,254,740,992–9,007,199,254,740,993'))
  it('say so where one is unknown', () => {
    const found = format.bounds({ n: 5, n_lower: 5, n_upper: null }, 'n')
    expect(found && format.boundsText(found)).toBe('5–unknown')
  })
})

describe('offsets', () => {
  it('are listed in the order of partitions', () =>
    expect(format.offsets({ a: { '10': [0, 5], '2': [1000, 1200] } })).toBe('2: 1,000–1,200 · 10: 0–5'))
  it('name their topics if there are many', () => expect(format.offsets({ a: { '0': [0, 5] }, b: { '0': [1, 2] } })).toBe('a 0: 0–5 · b 0: 1–2'))
  it('may be none', () => expect(format.offsets(undefined)).toBe('none'))
})

it('turns names into titles', () => {
  expect(format.title('trending_hashtags')).toBe('Trending hashtags')
  expect(format.title('__')).toBe('__')
})

it('clips a bar from one share to another, within the bar', () => {
  expect(format.stretch(0.25, 0.5)).toBe('inset(0 50.00% 0 25.00%)')
  expect(format.stretch(0, 1.5)).toBe('inset(0 0.00% 0 0.00%)')
})

describe('an approximate answer', () => {
  const answer = { exact: false, incomplete: false, late: 0, confidence: 1 }
  it('always says why', () => {
    expect(format.reasons({ ...answer, late: 3, incomplete: true })).toEqual(['a range of the log is missing', '3 events came too late'])
    expect(format.reasons({ ...answer, confidence: 0.99 })).toEqual(['some figures are sketched'])
    expect(format.reasons(answer)).toHaveLength(1)
  })
  it('is none where it is exact', () => expect(format.reasons({ ...answer, exact: true })).toEqual([]))
})

it('says how much of all it shows', () => {
  expect(format.cut(1000, 5321)).toBe('first 1,000 of 5,321')
  expect(format.cut(7, 7)).toBe('7')
})
