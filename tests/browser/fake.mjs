// A server with any answers: the dashboard's files and the part of the API that the page reads. Run by itself, it serves one
// ranked view, so that it can be stopped like a process.

import { readFileSync } from 'node:fs'
import { createServer } from 'node:http'
import { extname, join, normalize } from 'node:path'
import { fileURLToPath } from 'node:url'

const dist = fileURLToPath(new URL('../../dashboards/dist', import.meta.url))
const KINDS = { '.html': 'text/html', '.js': 'text/javascript', '.css': 'text/css', '.svg': 'image/svg+xml', '.txt': 'text/plain' }
const PAGE =
  "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; font-src 'self'; connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
const SCRIPT = "default-src 'none'; connect-src 'self'; frame-ancestors 'none'"
const HEARTBEAT_MS = 5000

/** JSON in which a bigint is a token of digits. */
export const json = (value) =>
  JSON.stringify(value, (_, cell) => (typeof cell === 'bigint' ? `\u0001${cell}\u0001` : cell)).replace(/"\\u0001(-?\d+)\\u0001"/g, '$1')

/**
 * `world` has `views`, `rows(view, parameters)`, `update(view)` with the first update of a streamed view, `ahead`, how far the
 * server's clock is ahead of this machine's, and `slow`, how long rows take, both in milliseconds. What is asked is in `requests`.
 */
export function serve(world, port = 0) {
  const requests = []
  const streams = new Set()
  const now = () => new Date(Date.now() + (world.ahead ?? 0)).toISOString()
  const server = createServer((request, response) => {
    const url = new URL(request.url, 'http://localhost')
    requests.push(request.url)
    const answer = (value) => response.writeHead(200, { 'content-type': 'application/json' }).end(json(value))
    if (url.pathname === '/v1/views') return answer({ time: now(), views: world.views })
    if (url.pathname === '/v1/jobs') return answer({ jobs: [] })
    if (url.pathname === '/v1/rejects') return answer(world.rejects ?? { rejects: [], total: 0, next_cursor: null })
    if (url.pathname === '/v1/stream') {
      response.writeHead(200, { 'content-type': 'text/event-stream' })
      streams.add(response)
      const send = (name, data) => response.write(`event: ${name}\ndata: ${json(data)}\n\n`)
      const beat = () => send('heartbeat', { time: now(), views: {} })
      for (const view of url.searchParams.get('views').split(',')) send('update', world.update(view))
      beat()
      const timer = setInterval(beat, HEARTBEAT_MS)
      return response.on('close', () => {
        clearInterval(timer)
        streams.delete(response)
      })
    }
    const [, view, what] = /^\/v1\/views\/([^/]+)\/(\w+)$/.exec(url.pathname) ?? []
    if (what === 'rows') return setTimeout(() => answer(world.rows(decodeURIComponent(view), url.searchParams)), world.slow ?? 0)
    if (what === 'audit') return answer({ audits: [] })
    if (what === 'corrections') return answer({ version: null, corrections: [], total: 0 })
    const path = normalize(url.pathname === '/' ? '/index.html' : url.pathname)
    const kind = KINDS[extname(path)] ?? 'application/octet-stream'
    try {
      const policy = kind === 'text/html' ? PAGE : SCRIPT
      response.writeHead(200, { 'content-type': kind, 'content-security-policy': policy }).end(readFileSync(join(dist, path)))
    } catch {
      response.writeHead(404).end()
    }
  })
  return new Promise((resolve) =>
    server.listen(port, '127.0.0.1', () =>
      resolve({
        url: `http://127.0.0.1:${server.address().port}`,
        requests,
        streams,
        stop: () =>
          new Promise((ended) => {
            server.close(ended)
            server.closeAllConnections()
          }),
      }),
    ),
  )
}

/** A view as `GET /v1/views` lists it. */
export const view = (change) => ({
  kind: 'view',
  name: 'trending',
  sql: 'CREATE MATERIALIZED VIEW …',
  definition: 'sha256:1',
  topic: 'tweets',
  table: 'tweets',
  columns: [
    { name: 'hashtag', type: 'TEXT', role: 'key' },
    { name: 'mentions', type: 'BIGINT', role: 'aggregate', function: 'count', distinct: false, additive: true },
  ],
  window: { kind: 'tumble', size: 'PT1M', slide: 'PT1M' },
  order: [{ column: 'mentions', descending: true }],
  limit: 3,
  watermark: '2024-01-15T10:04:31Z',
  partitions: [],
  coverage: { batch: null, speed: { offsets: { tweets: { 0: [0, 10] } } } },
  log_end: { tweets: { 0: 10 } },
  lag: 0,
  late: 0,
  rejected: 0,
  stopped: null,
  schedule: null,
  schedule_zone: null,
  catch_up: null,
  ...change,
})

/** An answer with these rows. */
export const answer = (rows, change) => ({
  view: 'trending',
  mode: 'merged',
  exact: true,
  incomplete: false,
  window: { start: '2024-01-15T10:04:00Z', end: '2024-01-15T10:05:00Z', state: 'open' },
  rows,
  sources: {},
  watermark: '2024-01-15T10:04:31Z',
  late: 0,
  rejected: 0,
  definition: 'sha256:1',
  certain: true,
  confidence: 1,
  total: rows.length,
  truncated: false,
  ...change,
})

export const ranking = {
  views: [view({})],
  rows: () => answer([]),
  update: (name) => ({ ...answer([{ hashtag: '#calm', mentions: 5 }], { view: name }), reset: true, removed: [] }),
}

if (process.argv[1] === fileURLToPath(import.meta.url)) {
  const { url } = await serve(ranking, Number(process.argv[2] ?? 0))
  console.log(url)
}
