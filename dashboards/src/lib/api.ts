// The wire, typed: what the server sends, and the few requests that this page makes.
import { parseJson } from './json'

export type Offsets = Record<string, [first: number, next: number]>
/** A BIGINT is a number where a number can hold it, and a bigint beyond. */
export type Cell = string | number | bigint | boolean | null
export type Row = Record<string, Cell>

export interface Column {
  name: string
  type: string
  role: string // 'window', 'key' or 'aggregate'
  function?: string
  distinct?: boolean
  /** Whether its values over several keys add up to a figure that means something. */
  additive?: boolean
}

/** Lengths are ISO 8601. A session has a gap and no size, which is its own. */
export interface ViewWindow {
  kind: 'tumble' | 'hop' | 'session'
  size?: string
  slide?: string
  offset?: string // how long after a multiple of the slide windows start
  zone?: string // whose days they are
  gap?: string
}

export interface Partition {
  partition: number
  watermark: string | null
  idle: boolean
  stalled: boolean
  holds_back: boolean
}

export interface ViewDetail {
  kind: 'view'
  name: string
  sql: string
  definition: string
  topic: string
  table: string
  columns: Column[]
  window: ViewWindow | null
  order: { column: string; descending: boolean }[]
  limit: number | null
  watermark: string | null
  partitions: Partition[]
  coverage: {
    batch: { version: number; offsets: Offsets; published: string; event_time: string | null } | null
    speed: { offsets: Offsets } | null
  }
  log_end: Record<string, number>
  lag: number
  late: number
  rejected: number
  /** Why its speed layer goes on no further, if it or its source has stopped. */
  stopped: string | null
  schedule: string | null
  schedule_zone: string | null
}

/** A view of plain rows, which are written to a topic. */
export interface OutputDetail {
  kind: 'output'
  name: string
  topic: string
  sink: { kind: string; topic: string; delivery: string; partition_by: string | null }
  positions: Record<string, number> // up to where each partition is written
  lag: number
  /** Why partitions have stopped. */
  stopped: Record<string, string>
}

export interface Answer {
  view: string
  mode: string
  exact: boolean
  incomplete: boolean
  /** The offsets that neither layer covers, if any. */
  missing?: Offsets
  window: { start?: string; end?: string; state?: string; from?: string; to?: string } | null
  rows: Row[]
  sources: {
    batch?: { version: number; offsets: Offsets } | null
    speed?: { offsets: Offsets } | null
  }
  watermark: string | null
  late: number
  rejected: number
  definition: string
  certain: boolean // whether these are surely the rows that a limit keeps
  confidence: number // with which probability each bound holds
  /** How many rows there are, of which `rows` are the first where the answer is `truncated`. */
  total: number
  truncated: boolean
  /** Each window's totals over all keys, where they were asked for: those of additive columns, with bounds. */
  totals?: Row[]
}

export interface Update extends Answer {
  reset: boolean
  removed: Row[]
}

/** How far off values were. */
export interface Deviation {
  values: number
  median: number | null
  worst: number | null
  worst_share: number | null
}

export interface ColumnAudit {
  column: string
  values: number
  bounded: number
  held: number
  late: Deviation
  sketch: Deviation
}

/** What the answers that a version has replaced were worth. */
export interface Audit {
  version: number
  at: string
  windows: number
  rows_missing: number
  rows_extra: number
  columns: ColumnAudit[]
  corrections: number
}

export interface Correction {
  window_start?: string
  window_end?: string
  key: Row
  column: string
  old: Cell
  new: Cell
  cause: 'late' | 'sketch' | 'redefined' | 'erased'
}

export interface Corrections {
  version: number | null
  corrections: Correction[]
  total: number
}

export type JobState = 'queued' | 'running' | 'succeeded' | 'failed' | 'cancelled'

export interface Job {
  id: string
  kind: string
  views: string[]
  state: JobState
  trigger: string
  progress: number
  queued: string | null
  started: string | null
  ended: string | null
  error: string | null
  versions: Record<string, number>
}

/** A record that is no row; or an event that came too late for `view`. */
export interface Reject {
  view: string | null
  topic: string
  partition: number | null
  offset: number | null
  line: number | null
  reason: string
  record: string
  rejected_at: string
}

export interface Rejects {
  rejects: Reject[]
  total: number
  next_cursor: string | null
}

/** What went wrong, in the server's words where it gave any (RFC 9457). */
export class ApiError extends Error {
  override name = 'ApiError'
}

export function problemText({ status, statusText }: Pick<Response, 'status' | 'statusText'>, body: string): string {
  try {
    const problem: unknown = JSON.parse(body)
    if (problem && typeof problem === 'object') {
      const { title, detail } = problem as { title?: unknown; detail?: unknown }
      if (typeof detail === 'string' && detail) return detail
      if (typeof title === 'string' && title) return title
    }
  } catch {
    // not JSON: a proxy's page, say; the status has to do
  }
  return `the server answered ${`${status} ${statusText}`.trim()}`
}

/** How long an answer may take: the first for what the server has at hand, the other for what it has to compute. */
const QUICK_MS = 8000
const SLOW_MS = 30_000

async function request<T>(path: string, limit: number, init?: RequestInit): Promise<T> {
  const signal = AbortSignal.timeout(limit)
  const reached = async <R>(what: Promise<R>): Promise<R> => {
    try {
      return await what
    } catch (cause) {
      throw new ApiError(signal.aborted ? 'the server doesn’t answer' : 'the server can’t be reached', { cause })
    }
  }
  const response = await reached(fetch(path, { ...init, signal, headers: { accept: 'application/json', ...init?.headers } }))
  const text = await reached(response.text())
  if (!response.ok) throw new ApiError(problemText(response, text))
  try {
    return parseJson(text) as T
  } catch (cause) {
    throw new ApiError('the server’s answer is not JSON', { cause })
  }
}

const post = (body?: unknown): RequestInit => ({
  method: 'POST',
  ...(body === undefined ? {} : { body: JSON.stringify(body), headers: { 'content-type': 'application/json' } }),
})

const viewPath = (view: string) => `/v1/views/${encodeURIComponent(view)}`

export interface Views {
  time: string // by the server's clock
  views: ViewDetail[]
  outputs: OutputDetail[]
}

export async function listViews(): Promise<Views> {
  const { time, views } = await request<{ time: string; views: (ViewDetail | OutputDetail)[] }>('/v1/views', QUICK_MS)
  return { time, views: views.filter((view) => view.kind === 'view'), outputs: views.filter((view) => view.kind === 'output') }
}

export const listJobs = async () => (await request<{ jobs: Job[] }>('/v1/jobs', QUICK_MS)).jobs

export const runBatch = (views: string[]) => request<Job>('/v1/jobs', QUICK_MS, post({ kind: 'batch', views }))

export const cancelJob = (id: string) => request<unknown>(`/v1/jobs/${encodeURIComponent(id)}/cancel`, QUICK_MS, post())

/** What was put aside, newest first: records that are no rows, and events that came late. */
export const listRejects = (limit: number) => request<Rejects>(`/v1/rejects?limit=${limit}`, QUICK_MS)

/** The scores of a view's answers, newest first. */
export const listAudits = async (view: string) =>
  (await request<{ audits: Audit[] }>(`${viewPath(view)}/audit`, SLOW_MS)).audits

/** What the newest version with corrections has corrected. */
export const listCorrections = (view: string, limit: number) =>
  request<Corrections>(`${viewPath(view)}/corrections?limit=${limit}`, SLOW_MS)

export const streamPath = (views: string[]) => `/v1/stream?views=${views.map(encodeURIComponent).join(',')}`

export interface RowsQuery {
  mode?: 'merged' | 'batch'
  window?: 'current'
  from?: string
  to?: string
  limit?: number
  /** `column:asc` or `column:desc`: the first rows of all keys are those of this order. */
  order?: string
  totals?: true
}

export function rows(view: string, query: RowsQuery): Promise<Answer> {
  const params = new URLSearchParams()
  for (const [name, value] of Object.entries(query)) {
    if (value !== undefined) params.set(name, String(value))
  }
  return request<Answer>(`${viewPath(view)}/rows?${params}`, SLOW_MS)
}

export const errorText = (error: unknown) => (error instanceof Error ? error.message : String(error))

/**
 * Runs `task` at once and again `milliseconds` after each end, while the page is visible.
 * Returns the function that stops it.
 */
export function poll(milliseconds: () => number, task: () => Promise<void>): () => void {
  let timer: ReturnType<typeof setTimeout> | undefined
  let running = false
  let stopped = false
  async function turn() {
    clearTimeout(timer)
    if (stopped || running || document.hidden) return
    running = true
    try {
      await task()
    } finally {
      running = false
      if (!stopped) timer = setTimeout(turn, milliseconds())
    }
  }
  document.addEventListener('visibilitychange', turn)
  timer = setTimeout(turn)
  return () => {
    stopped = true
    clearTimeout(timer)
    document.removeEventListener('visibilitychange', turn)
  }
}
