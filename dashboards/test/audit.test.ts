import { describe, expect, it } from 'vitest'
import type { Audit, ColumnAudit, Deviation } from '../src/lib/api'
import { deviation, scores, share } from '../src/lib/audit'

const none: Deviation = { values: 0, median: null, worst: null, worst_share: null }
const off = (values: number, median: number, worst: number, worst_share: number | null): Deviation => ({ values, median, worst, worst_share })
const column = (name: string, change: Partial<ColumnAudit>): ColumnAudit => ({
  column: name,
  values: 0,
  bounded: 0,
  held: 0,
  late: none,
  sketch: none,
  ...change,
})
const audit = (version: number, ...columns: ColumnAudit[]): Audit => ({
  version,
  base: null,
  at: '2024-01-15T10:00:00Z',
  windows: 1,
  rows_missing: 0,
  rows_extra: 0,
  columns,
  corrections: 0,
})

describe('scores', () => {
  it('add up over versions, the worst of all and the newest median', () => {
    const audits = [
      audit(9, column('n', { bounded: 10, held: 9 })),
      audit(8, column('n', { bounded: 5, held: 5, late: off(2, 3, 4, 0.5), sketch: off(1, 1, 1, 0.01) })),
      audit(7, column('n', { bounded: 5, held: 5, late: off(1, 9, 9, 0.25) })),
    ]
    expect(scores(audits)).toEqual([{ column: 'n', bounded: 20, held: 19, late: off(3, 3, 9, 0.5), sketch: off(1, 1, 1, 0.01) }])
  })
  it('are of the columns that there are', () => {
    const audits = [audit(2, column('users', { bounded: 1, held: 1 })), audit(1, column('n', { bounded: 1 }))]
    expect(scores(audits).map(({ column }) => column)).toEqual(['users'])
    expect(scores([])).toEqual([])
  })
})

it('a share of bounds is not rounded up to all of them', () => {
  expect(share(3, 3)).toBe('100 %')
  expect(share(999_999, 1_000_000)).toBe('99.99 %')
  expect(share(1, 3)).toBe('33.33 %')
  expect(share(0, 0)).toBe('–')
})

it('errors read as text', () => {
  expect(deviation(none)).toBe('none')
  expect(deviation(off(1, 2, 2, 0.125))).toBe('1 value, median 2, worst 2 (12.5 %)')
  expect(deviation(off(3, 0.5, 4, null))).toBe('3 values, median 0.5, worst 4')
  expect(deviation({ ...none, values: 2 })).toBe('2 values')
})
