// The few requests that this page makes. What they are answered is in `schema.ts`, which is generated from the API's description.
import { parseJson } from './json'
import type { components, operations } from './schema'

type Schemas = components['schemas']

/** What an answer is once it is read: a BIGINT is a number where a number can hold it, and a bigint beyond. */
type Read<T> = [Schemas['Cell']] extends [T] ? T | bigint : T extends object ? { [Name in keyof T]: Read<T[Name]> } : T

export type Cell = Read<Schemas['Cell']>
export type Row = Read<Schemas['Row']>
export type Offsets = Schemas['Offsets']
export type Column = Schemas['ViewColumn']
export type ViewWindow = Schemas['ViewWindow']
export type Partition = Schemas['ViewPartition']
export type ViewDetail = Extract<Schemas['Detail'], { kind: 'view' }>
/** A view of plain rows, which are written to a topic. */
export type OutputDetail = Extract<Schemas['Detail'], { kind: 'output' }>
export type Answer = Read<Schemas['RowsAnswer']>
export type Update = Read<Schemas['Update']>
export type Heartbeat = Schemas['Heartbeat']
export type Deviation = Schemas['Deviation']
export type ColumnAudit = Schemas['ColumnAudit']
export type Audit = Schemas['Audit']
export type Corrections = Read<Schemas['Corrections']>
export type Job = Schemas['JobDetail']
export type JobState = Schemas['JobState']
export type Reject = Schemas['Reject']
export type RowsQuery = NonNullable<operations['rows']['parameters']['query']>

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

const post = (body?: Schemas['NewJob']): RequestInit => ({
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
  const { time, views } = await request<Schemas['ViewList']>('/v1/views', QUICK_MS)
  return { time, views: views.filter((view) => view.kind === 'view'), outputs: views.filter((view) => view.kind === 'output') }
}

export const listJobs = async () => (await request<Schemas['JobList']>('/v1/jobs', QUICK_MS)).jobs

export const runBatch = (views: string[]) => request<Job>('/v1/jobs', QUICK_MS, post({ kind: 'batch', views }))

export const cancelJob = (id: string) => request<Job>(`/v1/jobs/${encodeURIComponent(id)}/cancel`, QUICK_MS, post())

/** What was put aside, newest first: records that are no rows, and events that came late. */
export const listRejects = (limit: number) => request<Schemas['RejectsPage']>(`/v1/rejects?limit=${limit}`, QUICK_MS)

/** The scores of a view's answers, newest first. */
export const listAudits = async (view: string) =>
  (await request<Schemas['Audits']>(`${viewPath(view)}/audit`, SLOW_MS)).audits

/** What the newest version with corrections has corrected. */
export const listCorrections = (view: string, limit: number) =>
  request<Corrections>(`${viewPath(view)}/corrections?limit=${limit}`, SLOW_MS)

export const streamPath = (views: string[]) => `/v1/stream?views=${views.map(encodeURIComponent).join(',')}`

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
