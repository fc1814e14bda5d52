// Figures of the pulse strip, from one answer of `GET /v1/views` after another.
import type { Partition, ViewDetail } from './api'
import { span } from './format'

/** Per `topic/partition`, the offset that either layer of any view has reached. */
export function positions(views: ViewDetail[]): Map<string, number> {
  const reached = new Map<string, number>()
  for (const { coverage } of views) {
    for (const layer of [coverage.batch, coverage.speed]) {
      for (const [topic, ranges] of Object.entries(layer?.offsets ?? {})) {
        for (const [partition, [, next]] of Object.entries(ranges)) {
          const at = `${topic}/${partition}`
          reached.set(at, Math.max(reached.get(at) ?? 0, next))
        }
      }
    }
  }
  return reached
}

/** Events between two readings; a partition seen for the first time, or set back, counts nothing. */
export function growth(before: Map<string, number>, now: Map<string, number>): number {
  let events = 0
  for (const [at, next] of now) events += Math.max(0, next - (before.get(at) ?? next))
  return events
}

export interface Sample {
  at: number // milliseconds
  events: number // since the sample before
}

/** Events per second over the last `ms` of samples. */
export function rate(samples: Sample[], ms: number): number {
  const last = samples.at(-1)
  if (!last) return 0
  const first = samples.findIndex((sample) => sample.at >= last.at - ms)
  const events = samples.slice(first + 1).reduce((sum, sample) => sum + sample.events, 0)
  const elapsed = last.at - samples[first]!.at
  return elapsed > 0 ? (events * 1000) / elapsed : 0
}

/** Each sample's own events per second, whatever time its poll took. */
export function rates(samples: Sample[]): number[] {
  return samples.slice(1).map(({ at, events }, before) => (events * 1000) / Math.max(1, at - samples[before]!.at))
}

/** The watermark that the page as a whole has reached: the slowest view's, of those that have one. */
export function watermark(views: ViewDetail[]): number | null {
  const known = views.map((view) => Date.parse(view.watermark ?? '')).filter((ms) => !Number.isNaN(ms))
  return known.length === 0 ? null : Math.min(...known)
}

/** Rejects and lag are facts of a topic that each of its views repeats: the largest per topic, summed. */
export function perTopic(views: ViewDetail[], figure: (view: ViewDetail) => number): number {
  const largest = new Map<string, number>()
  for (const view of views) largest.set(view.topic, Math.max(largest.get(view.topic) ?? 0, figure(view)))
  return [...largest.values()].reduce((sum, value) => sum + value, 0)
}

/**
 * How many events came late. One event may be late for several views of its topic, so of a topic it is what the view with
 * the most says; where other views say something too, there may be more, and this is the least.
 */
export function lateEvents(views: ViewDetail[]): { events: number; least: boolean } {
  const events = perTopic(views, ({ late }) => late)
  return { events, least: views.reduce((sum, { late }) => sum + late, 0) > events }
}

/** How far a partition may be behind the others before it is worth a word. */
const BEHIND_MS = 60_000

/** Which partitions hold a topic's watermark back, and why: one line for each. */
export function holdUps(views: ViewDetail[]): string[] {
  const lines = new Set<string>()
  for (const { topic, partitions } of views) {
    const times = partitions.map(({ watermark }) => Date.parse(watermark ?? '')).filter((ms) => !Number.isNaN(ms))
    for (const one of partitions) {
      const why = holdUp(one, Math.max(...times))
      if (why) lines.add(`Partition ${one.partition} of ${one.topic ?? topic} ${why}`)
    }
  }
  return [...lines]
}

function holdUp({ watermark, stalled, holds_back }: Partition, newest: number): string | null {
  if (stalled) return 'holds records and delivers none: it has stalled, and the watermark waits for it.'
  if (!holds_back) return null
  if (watermark === null) return 'has had no event yet: the watermark waits for it.'
  const behind = newest - Date.parse(watermark)
  return behind >= BEHIND_MS ? `is ${span(behind)} behind the others: the watermark waits for it.` : null
}
