import { expect, it } from 'vitest'
import { ended, newestFirst, sessionTimes } from '../src/lib/session'
import { view } from './view'

const session = (window_start: string, window_end: string) => ({ window_start, window_end, clicks: 1 })

it('a session lasts from its start to its end, and the day is named where it is another', () => {
  const visit = session('2024-01-15T23:50:00Z', '2024-01-15T23:59:30Z')
  expect(sessionTimes(visit)).toEqual({ start: '2024-01-15 23:50:00', until: '23:59:30', lasts: 570_000 })
  expect(sessionTimes(session('2024-01-15T23:50:00Z', '2024-01-16T00:20:00Z')).until).toBe('2024-01-16 00:20:00')
  expect(sessionTimes(session('2024-01-15T10:00:00.25Z', '2024-01-15T10:30:00.250001Z'))).toMatchObject({
    start: '2024-01-15 10:00:00.25',
    until: '10:30:00.250001',
  })
})

it('those that end last come first', () => {
  const rows = [session('2024-01-15T10:00:00Z', '2024-01-15T11:00:00Z'), session('2024-01-15T10:30:00Z', '2024-01-15T12:00:00Z')]
  expect(newestFirst(rows)).toEqual([rows[1], rows[0]])
})

it('those that have ended lately are asked for by the gap', () => {
  const visits = view({ window: { kind: 'session', gap: 'PT30M' }, watermark: '2024-01-15T12:00:00Z' })
  const asked = ended(visits)!
  expect([asked.from, asked.to].map((ms) => new Date(ms).toISOString())).toEqual(['2024-01-15T06:00:00.000Z', '2024-01-15T12:00:00.000Z'])
  expect(ended(view({ window: { kind: 'session', gap: 'PT30M' }, watermark: null }))).toBeNull()
  expect(ended(view())).toBeNull()
})
