// What answers were worth: the scores of several versions, column by column.
import type { Audit, Deviation } from './api'
import { number, plural } from './format'

export interface Score {
  column: string
  bounded: number
  held: number
  late: Deviation
  sketch: Deviation
}

const largest = (one: number | null, other: number | null) => (one === null || other === null ? (one ?? other) : Math.max(one, other))

/** Counts add up and the largest error stays; a median can't be added up, so it is that of the newest version with errors. */
function add(newer: Deviation, older: Deviation): Deviation {
  return {
    values: newer.values + older.values,
    median: newer.values > 0 ? newer.median : older.median,
    worst: largest(newer.worst, older.worst),
    worst_share: largest(newer.worst_share, older.worst_share),
  }
}

/** Per column over audits, newest first. Columns that only older definitions had are left out. */
export function scores(audits: Audit[]): Score[] {
  const columns = audits[0]?.columns.map(({ column }) => column) ?? []
  return columns.map((column) => {
    const each = audits.flatMap((audit) => audit.columns.filter((found) => found.column === column))
    return each.reduce<Score>(
      (sum, { bounded, held, late, sketch }) => ({
        column,
        bounded: sum.bounded + bounded,
        held: sum.held + held,
        late: add(sum.late, late),
        sketch: add(sum.sketch, sketch),
      }),
      { column, bounded: 0, held: 0, late: NONE, sketch: NONE },
    )
  })
}

const NONE: Deviation = { values: 0, median: null, worst: null, worst_share: null }

/** `100 %`; never rounded up to it. */
export function share(held: number, bounded: number): string {
  if (bounded === 0) return '–'
  const percent = (100 * held) / bounded
  return `${held < bounded ? number(Math.min(99.99, Math.round(percent * 100) / 100)) : 100} %`
}

/** `3 values, median 1, worst 4 (25 %)`. */
export function deviation({ values, median, worst, worst_share }: Deviation): string {
  if (values === 0) return 'none'
  const part = worst_share === null ? '' : ` (${number(Math.round(worst_share * 1000) / 10)} %)`
  const errors = worst === null ? '' : `, median ${number(median ?? worst)}, worst ${number(worst)}${part}`
  return plural(values, 'value') + errors
}

export const CAUSES = { late: 'came late', sketch: 'sketch', redefined: 'new definition', erased: 'erased' } as const
