// The wire, typed: what the server sends, and the few requests that this page makes.

export type Offsets = Record<string, [first: number, next: number]>
export type Cell = string | number | boolean | null
export type Row = Record<string, Cell>

export interface Column {
  name: string
  type: string
  role: string // 'window', 'key' or 'aggregate'
  function?: string
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
  schedule: string | null
}

export interface Answer {
  view: string
  mode: string
  exact: boolean
  incomplete: boolean
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
  next_cursor?: string | null
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
  cause: 'late' | 'sketch' | 'redefined'
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

export interface Reject {
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

export async function problemText(response: Response): Promise<string> {
  const status = `${response.status} ${response.statusText}`.trim()
  try {
    const problem: unknown = await response.json()
    if (problem && typeof problem === 'object') {
      const { title, detail } = problem as { title?: unknown; detail?: unknown }
      if (typeof detail === 'string' && detail) return detail
      if (typeof title === 'string' && title) return title
    }
  } catch {
    // not JSON: a proxy's page, say; the status has to do
  }
  return `the server answered ${status}`
}

async function request<T>(path: string, init?: RequestInit): Promise<T> {
  let response: Response
  try {
    response = await fetch(path, { ...init, headers: { accept: 'application/json', ...init?.headers } })
  } catch (cause) {
    throw new ApiError('the server can’t be reached', { cause })
  }
  if (!response.ok) throw new ApiError(await problemText(response))
  try {
    return (await response.json()) as T
  } catch (cause) {
    throw new ApiError('the server’s answer is not JSON', { cause })
  }
}

const post = (body?: unknown): RequestInit => ({
  method: 'POST',
  ...(body === undefined ? {} : { body: JSON.stringify(body), headers: { 'content-type': 'application/json' } }),
})

const viewPath = (view: string) => `/v1/views/${encodeURIComponent(view)}`

/** The views that keep rows; those that write them to topics have none to show. */
export const listViews = async () =>
  (await request<{ views: (ViewDetail | { kind: 'output' })[] }>('/v1/views')).views.filter((view) => view.kind === 'view')

export const listJobs = async () => (await request<{ jobs: Job[] }>('/v1/jobs')).jobs

export const runBatch = (views: string[]) => request<Job>('/v1/jobs', post({ kind: 'batch', views }))

export const cancelJob = (id: string) => request<unknown>(`/v1/jobs/${encodeURIComponent(id)}/cancel`, post())

export const listRejects = (limit: number) => request<Rejects>(`/v1/rejects?limit=${limit}`)

/** The scores of a view's answers, newest first. */
export const listAudits = async (view: string) => (await request<{ audits: Audit[] }>(`${viewPath(view)}/audit`)).audits

/** What the newest version with corrections has corrected. */
export const listCorrections = (view: string, limit: number) =>
  request<Corrections>(`${viewPath(view)}/corrections?limit=${limit}`)

export const streamPath = (views: string[]) => `/v1/stream?views=${views.map(encodeURIComponent).join(',')}`

export interface RowsQuery {
  mode: 'merged' | 'batch' | 'speed'
  from?: string
  to?: string
  limit?: number
}

export function rows(view: string, query: RowsQuery, cursor?: string): Promise<Answer> {
  const params = new URLSearchParams()
  for (const [name, value] of Object.entries({ ...query, cursor })) {
    if (value !== undefined) params.set(name, String(value))
  }
  return request<Answer>(`${viewPath(view)}/rows?${params}`)
}

/** A whole range, page after page; the answer is the first page's with every page's rows. */
export async function allRows(view: string, query: RowsQuery): Promise<Answer> {
  const first = await rows(view, query)
  let cursor = first.next_cursor
  const all = [...first.rows]
  while (cursor) {
    const page = await rows(view, query, cursor)
    for (const row of page.rows) all.push(row)
    cursor = page.next_cursor
  }
  return { ...first, rows: all, next_cursor: null }
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

const FOLLOW_MS = 2000

/**
 * Runs `task` at once and whenever `at` says something else than when it last succeeded. An `at` of `undefined` waits.
 * Whatever goes wrong is told to `tell`, and nothing when all is well. Returns the function that stops it.
 */
export function follow(
  at: () => string | undefined,
  task: () => Promise<void>,
  tell: (problem: string | undefined) => void,
): () => void {
  let pause = FOLLOW_MS
  let last: string | undefined
  return poll(
    () => pause,
    async () => {
      const now = at()
      if (now === undefined || now === last) return
      const began = performance.now()
      try {
        await task()
        last = now
        tell(undefined)
      } catch (error) {
        tell(errorText(error))
      }
      // Where an answer takes long, ask more seldom: the page must not be the server's main work.
      pause = Math.max(FOLLOW_MS, 5 * (performance.now() - began))
    },
  )
}
