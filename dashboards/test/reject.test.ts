import { expect, it } from 'vitest'
import type { Reject } from '../src/lib/api'
import { sortOut } from '../src/lib/reject'

const entry = (change: Partial<Reject>): Reject => ({
  topic: 'tweets',
  partition: 0,
  offset: 1,
  line: null,
  view: null,
  behind_ms: null,
  reason: 'not JSON',
  record: '{',
  rejected_at: '2024-01-15T10:00:00Z',
  ...change,
})

it('events that came too late for a view are no rejects', () => {
  const [bad, worse] = [entry({ offset: 4 }), entry({ line: 2, offset: null, partition: null })]
  const late = ['b', 'a', 'b'].map((view) => entry({ view, behind_ms: 900 }))
  expect(sortOut([late[0]!, bad, late[1]!, worse, late[2]!])).toEqual({ rejects: [bad, worse], late: [['a', 1], ['b', 2]] })
  expect(sortOut(late).rejects).toEqual([])
  expect(sortOut([])).toEqual({ rejects: [], late: [] })
})
