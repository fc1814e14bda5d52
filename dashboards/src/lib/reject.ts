// What the list of rejects holds: records that are no rows of their table, and rows that came too late for a view.
import type { Reject } from './api'

/** Late events are no rejects: each counts for the view that it came too late for. */
export function sortOut(listed: Reject[]): { rejects: Reject[]; late: [view: string, events: number][] } {
  const late = new Map<string, number>()
  for (const { view } of listed) if (view !== null) late.set(view, (late.get(view) ?? 0) + 1)
  return { rejects: listed.filter(({ view }) => view === null), late: [...late].sort(([a], [b]) => (a < b ? -1 : 1)) }
}
