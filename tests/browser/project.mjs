// A project of random views, and random events for its tables. Both follow from a seed.

import { chanceOf } from './support.mjs'

/** So long is it from one event to the next, in seconds, and so long are windows, in such steps. */
const TABLES = [
  { name: 'shop', step: 2, options: "watermark = '60 seconds'" },
  { name: 'floor', step: 2, options: "partitions = 2, partition_by = 'k'" },
  { name: 'week', step: 300, options: "watermark = '10 minutes'" },
]
const SIZES = [30, 60, 120, 300]
const BEGIN = Date.parse('2024-03-30T10:00:00Z')

const KEYS = ['Zürich', '', null, '<b>bold</b>', 'שלום עולם', '😀👩‍👩‍👧', 'a · b', ' spaced  out ', 'null', '#zz', 'Ω', '～']
const TEXTS = [...KEYS, '<img src=x onerror="window.ranEventText=1">', 'مرحبا 123', 'line\nbreak', '"quoted"', '0', 'a – b']

/** Names that are safe to say anywhere, and some that aren't. */
const NAMES = ['f0', 'f1', 'f2', 'f3', '"Ünits <b>"', '"a:desc"', '"x&y=z"', '"many words"', '"rows"']

/** An event of a table, the `at`th. */
function event({ random, pick, below }, { step }, at) {
  const late = random() < 0.01 ? 400 : 0
  const seconds = step * (at + 20 * random() - 10 - late)
  const isWhole = random() < 0.3
  const maybe = (value) => (random() < 0.07 ? null : value)
  return {
    k: pick(KEYS),
    s: pick(TEXTS),
    v: maybe(below(2000)),
    w: maybe(BigInt(below(2 ** 31)) * BigInt(below(2 ** 31)) * pick([1n, -1n])),
    d: maybe(pick([random() * 1e4 - 5e3, below(100) + 0.1, random() * 1e9, random() / 1e7, random() < 0.02 ? 1.5e308 : 0.25])),
    b: pick([true, false, null]),
    u: below(1e6),
    t: maybe(new Date(BEGIN + below(1e9)).toISOString().replace('Z', `${below(1000).toString().padStart(3, '0')}Z`)),
    ts: new Date(BEGIN + 1000 * (isWhole ? Math.floor(seconds) : seconds)).toISOString(),
  }
}

/** The events of one table from the `from`th to the `to`th, as JSON. */
export function events(seed, table, from, to) {
  const chance = chanceOf(seed + from * 31 + table.name.length)
  const digits = (_, value) => (typeof value === 'bigint' ? `\u0001${value}` : value)
  const line = (at) => JSON.stringify(event(chance, table, at), digits).replace(/"\\u0001(-?\d+)"/g, '$1')
  return Array.from({ length: to - from }, (_, at) => line(from + at))
}

const WIDE = 1_000_000_000_000

const WHOLE = ['count(*)', 'count(v)', 'sum(v)', `sum(v * ${WIDE})`, `sum(-v * ${WIDE})`, 'sum(v - 1000)', 'sum(w)', 'sum(w % 4096)', 'count(*) FILTER (WHERE b)']
const ADDITIVE = [...WHOLE, 'sum(d)', 'sum(d * 1e300)', 'sum(-d)', 'sum(v * 0.1)']
const OTHERS = [
  ...['avg(v)', 'avg(d)', 'stddev_samp(d)', 'var_pop(v)', 'min(v)', 'max(v)', 'min(w)', 'max(w)', 'min(d)', 'max(d)'],
  ...['count(DISTINCT s)', 'count(DISTINCT u)', 'approx_count_distinct(u)', 'approx_percentile(d, 0.5)', 'approx_percentile(v, 0.95)'],
  ...['min(ts)', 'max(t)', 'max(ts)', 'min(s)', 'max(s)', 'arg_max(s, ts)', 'arg_min(k, u)', 'arg_max(w, ts)', 'arg_max(t, d)', 'arg_max(b, u)'],
]
const CONDITIONS = ['v > 500', 'b', "k <> '#zz'", 'd IS NOT NULL', "s LIKE '%a%'"]
const SHAPES = ['all of time', 'tumble', 'hop', 'session', 'ranking', 'days', 'tumble', 'ranking']

/** The `at`th view. */
function view(seed, at) {
  const { random, below, pick } = chanceOf(seed + at * 7919)
  const shape = SHAPES[at % SHAPES.length]
  const table = shape === 'days' ? TABLES[2] : pick(TABLES)
  const seconds = (steps) => `INTERVAL '${steps * table.step} seconds'`
  const size = pick(SIZES)
  const from = {
    'all of time': table.name,
    tumble: `TUMBLE(${table.name}, ts, ${seconds(size)}${random() < 0.3 ? `, ${seconds(pick([1, 7, 25]))}` : ''})`,
    hop: `HOP(${table.name}, ts, ${seconds(size)}, ${seconds(size * pick([1, 2, 3]))})`,
    session: `SESSION(${table.name}, ts, ${seconds(pick([8, 15, 30]))})`,
    ranking: pick([`TUMBLE(${table.name}, ts, ${seconds(size)})`, `HOP(${table.name}, ts, ${seconds(30)}, ${seconds(size)})`]),
    days: `TUMBLE(${table.name}, ts, INTERVAL '1 day', '${pick(['Europe/Paris', 'America/New_York', 'Asia/Kathmandu'])}')`,
  }[shape]
  const names = [...NAMES].sort(() => random() - 0.5)
  const aggregates = Array.from({ length: 1 + below(3) }, () => `${pick(pick([WHOLE, ADDITIVE, OTHERS, OTHERS]))} AS ${names.pop()}`)
  const ranked = shape === 'ranking' || (shape === 'all of time' && random() < 0.4)
  if (ranked) aggregates[0] = `${pick([...ADDITIVE, 'max(d)', 'max(ts)', 'min(s)', 'count(DISTINCT u)', 'avg(d)'])} AS ${names.pop()}`
  const key = [['k'], ['k'], ['k', 's'], ['s'], ['v % 3'], ['b'], ['d'], ['t'], ['k', 'b']]
  const keys = shape !== 'ranking' && random() < 0.25 ? [] : pick(key).map((of, i) => `${of} AS key${i}`)
  const bounds = shape === 'all of time' ? [] : ['window_start', 'window_end']
  const grouped = [...bounds, ...keys.map((_, i) => `key${i}`)]
  const options = [
    random() < 0.3 && shape !== 'all of time' && `allowed_lateness = '${pick([30, 200]) * table.step} seconds'`,
    random() < 0.1 && `max_rows = ${pick([3, 20])}`,
  ].filter(Boolean)
  const by = aggregates[0].replace(/^.* AS /, '')
  return [
    `CREATE MATERIALIZED VIEW view_${at}${options.length > 0 ? ` WITH (${options.join(', ')})` : ''} AS`,
    `SELECT ${[...bounds, ...keys, ...aggregates].join(', ')} FROM ${from}`,
    random() < 0.25 ? `WHERE ${pick(CONDITIONS)}` : '',
    grouped.length > 0 ? `GROUP BY ${grouped.join(', ')}` : '',
    ranked ? `ORDER BY ${by} ${pick(['DESC', 'DESC', 'ASC'])} LIMIT ${pick([1, 5, 15])}` : '',
  ].join('\n') + ';'
}

/** The SQL of a project with so many views, and its tables. */
export function project(seed, views) {
  const columns = 'k TEXT, s TEXT, v BIGINT, w BIGINT, d DOUBLE, b BOOLEAN, u BIGINT NOT NULL, t TIMESTAMP, ts TIMESTAMP NOT NULL'
  const tables = TABLES.map(({ name, options }) => `CREATE TABLE ${name} (${columns})\nWITH (topic = '${name}', event_time = 'ts', ${options});`)
  return { tables: TABLES, sql: [...tables, ...Array.from({ length: views }, (_, at) => view(seed, at))].join('\n') }
}
