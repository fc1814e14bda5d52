import type { ViewDetail } from '../src/lib/api'

/** A windowed, limited view over one topic, to be varied. */
export const view = (change: Partial<ViewDetail> = {}): ViewDetail => ({
  kind: 'view',
  name: 'trending_hashtags',
  sql: 'CREATE MATERIALIZED VIEW …',
  definition: 'sha256:1',
  topic: 'tweets',
  table: 'tweets',
  columns: [
    { name: 'window_start', type: 'TIMESTAMP', role: 'window' },
    { name: 'window_end', type: 'TIMESTAMP', role: 'window' },
    { name: 'hashtag', type: 'TEXT', role: 'key' },
    { name: 'mentions', type: 'BIGINT', role: 'aggregate', function: 'count' },
  ],
  window: { kind: 'hop', size: 'PT5M', slide: 'PT1M' },
  order: [{ column: 'mentions', descending: true }],
  limit: 3,
  watermark: '2017-08-27T00:04:31Z',
  partitions: [{ partition: 0, watermark: '2017-08-27T00:04:31Z', idle: false, stalled: false, holds_back: false }],
  coverage: { batch: null, speed: { offsets: { tweets: { '0': [0, 10] } } } },
  log_end: { tweets: { '0': 10 } },
  lag: 0,
  late: 0,
  rejected: 0,
  stopped: null,
  emission: null,
  schedule: null,
  schedule_zone: null,
  catch_up: null,
  ...change,
})
