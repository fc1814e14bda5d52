// Every figure on the page is the API's: for 200 random views and streams on a real server; for values that no stream makes, from a
// stand-in; and the seams where it once wasn't.

import assert from 'node:assert/strict'
import { mkdirSync, rmSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { after, before, test } from 'node:test'
import { answered, chooseLast, compare, showsUpTo } from './compare.mjs'
import { answer, serve, view } from './fake.mjs'
import { events, project } from './project.mjs'
import { chanceOf, covers, DESKTOP, launch, live, open, PHONE, post, runBatch, scrollsSideways, shot, start, TABLET, workFolder } from './support.mjs'

let browser
before(async () => (browser = await launch()))
after(() => browser?.close())

const seed = Number(process.env.ANABRANCH_SEED ?? 20240115)
const VIEWS = 200
const NEWEST = Date.parse('2024-01-15T10:05:00Z')
const MINUTE = 60_000
const iso = (ms) => new Date(ms).toISOString().replace('.000Z', 'Z')

/** Events of a part, per table. */
const PART = 1500

test(`every figure on the page is the API's, for ${VIEWS} random views and their streams (seed ${seed})`, async (t) => {
  const work = workFolder()
  const { sql, tables } = project(seed, VIEWS)
  mkdirSync(join(work, 'views'))
  writeFileSync(join(work, 'views', 'views.sql'), sql)
  writeFileSync(join(work, 'anabranch.toml'), "[speed]\nidle_after = '1 day'\n[batch]\nscheduler = false\n")
  const server = start(work, '127.0.0.1:0')
  t.after(async () => {
    await server.stop()
    rmSync(work, { recursive: true, force: true })
  })
  const url = await server.url
  const grow = async (from, to) => {
    for (const table of tables) {
      const receipt = await post(url, table.name, events(seed, table, from, to))
      assert.deepEqual(receipt.rejected, [])
      await covers(url, table.name, [receipt])
    }
  }
  await grow(0, PART)
  await runBatch(url, Array.from({ length: VIEWS }, (_, at) => `view_${at}`).filter((_, at) => at % 3 > 0 && at % 2 > 0))
  await grow(PART, PART + PART / 2)
  const opened = await open(browser, url, { viewport: DESKTOP })
  const { page, wrong, close } = opened
  page.setDefaultTimeout(120_000)
  await live(page)
  await answered(page, VIEWS)

  // What streams bring to a page that is open.
  await grow(PART + PART / 2, 2 * PART)
  const isStreamed = ({ window, limit }) => window && window.kind !== 'session' && limit !== null
  await showsUpTo(page, url, isStreamed)
  await compare(opened, url, isStreamed)

  await page.reload()
  await answered(page, VIEWS)
  const seen = await compare(opened, url)
  const KINDS = ['null', 'empty', 'beyond 2^53', 'beyond -2^53', 'infinite', 'bounded', 'split', 'exact', 'late', 'sketched', 'uncertain']
  assert.ok(seen.figures > 50 * VIEWS && KINDS.every((kind) => seen[kind] > 0), JSON.stringify(seen))
  await chooseLast(page)
  await compare(opened, url, ({ window, limit }) => window && window.kind !== 'session' && limit === null)
  assert.equal(await page.evaluate(() => window.ranEventText), undefined)
  assert.deepEqual(wrong, [])
  for (const [size, viewport] of Object.entries({ desktop: DESKTOP, tablet: TABLET, phone: PHONE })) {
    await page.setViewportSize(viewport)
    assert.equal(await scrollsSideways(page), false)
    await page.screenshot({ path: shot(`figures-${size}`) })
  }
  await close()
})

/** A value as the page is to hold it: a bigint where a number can't. */
const integer = (value) => (Number.isSafeInteger(Number(value)) ? Number(value) : value)

const FUNCTIONS = [
  { type: 'BIGINT', function: 'count', distinct: false, additive: true },
  { type: 'BIGINT', function: 'sum', distinct: false, additive: true },
  { type: 'DOUBLE', function: 'sum', distinct: false, additive: true },
  { type: 'BIGINT', function: 'count', distinct: true, additive: false },
  { type: 'DOUBLE', function: 'avg', distinct: false, additive: false },
  { type: 'BIGINT', function: 'min', distinct: false, additive: false },
  { type: 'TIMESTAMP', function: 'max', distinct: false, additive: false },
  { type: 'TEXT', function: 'arg_max', distinct: false, additive: false },
]

function value({ random, below, pick }, { type, function: name }) {
  if (name !== 'count' && random() < 0.05) return null
  switch (type) {
    case 'BIGINT': {
      const wide = BigInt(below(2 ** 31)) * BigInt(below(2 ** 31)) * (name === 'count' ? 1n : pick([1n, -1n]))
      return integer(random() < 0.3 ? wide : name === 'count' ? BigInt(below(5000)) : BigInt(below(5000) - 2500))
    }
    case 'DOUBLE':
      return pick([random() * 1e4 - 5e3, random() * 1e9, -random(), random() * 1e17, 0.1 + 0.2, random() < 0.2 ? 'Infinity' : 1.5, random() < 0.2 ? 'NaN' : -1.5])
    case 'TIMESTAMP':
      return pick(['2024-01-15T10:04:00Z', '2024-01-15T10:04:00.25Z', '2024-01-15T10:04:00.250001Z'])
    default:
      return pick(['a', 'b <b>', 'ü', '\u{1f600}'])
  }
}

/** The server's order: what is null comes last where the largest come first, and NaN is above all numbers. */
function compareCells(a, b, { type }) {
  if (a === null || b === null) return Number(b === null) - Number(a === null)
  const [one, other] = [a, b].map((cell) => (type === 'DOUBLE' ? Number(cell) : typeof cell === 'string' ? cell.replace('Z', '') : cell))
  return one > other ? 1 : one < other ? -1 : Number(Number.isNaN(one)) - Number(Number.isNaN(other))
}

/** A cell, its bounds, and mostly the same three times. */
function bounded(chance, column, name = column.name) {
  const cell = value(chance, column)
  const off = chance.random() < 0.2
  return { [name]: cell, [`${name}_lower`]: off ? value(chance, column) : cell, [`${name}_upper`]: off ? value(chance, column) : cell }
}

/** A random view with all answers about it. */
function invent(at) {
  const chance = chanceOf(seed + at * 7919)
  const shape = ['all of time', 'windows', 'ranking'][at % 3]
  const columns = Array.from({ length: 1 + chance.below(3) }, (_, i) => ({ name: `f${i}`, role: 'aggregate', ...chance.pick(FUNCTIONS) }))
  const isKeyed = shape !== 'windows' || chance.random() < 0.8
  const total = isKeyed ? chance.below(12) + 1 : 1
  const rows = Array.from({ length: total }, (_, i) => Object.assign({ key: `key ${i}` }, ...columns.map((column) => bounded(chance, column))))
  if (shape === 'ranking') rows.sort((a, b) => compareCells(b.f0, a.f0, columns[0]) || (a.key < b.key ? -1 : 1))
  const ends = Array.from({ length: 4 }, (_, i) => NEWEST - i * MINUTE).reverse()
  const times = (end) => ({ window_start: iso(end - MINUTE), window_end: iso(end) })
  const totals = () =>
    ends.map((end) => Object.assign(times(end), { rows: total }, ...columns.filter(({ additive }) => additive).map((column) => bounded(chance, column))))
  const range = () => ends.flatMap((end) => rows.map((row) => ({ ...row, ...times(end), ...Object.assign({}, ...columns.map((column) => bounded(chance, column))) })))
  const version = chance.random() < 0.6 ? 1 + chance.below(9) : null
  const batch = version && { version, offsets: { tweets: { 0: [0, 5] } } }
  return {
    rows,
    merged: { totals: totals(), rows: range() },
    batch: { totals: totals(), rows: range() },
    sources: { batch },
    exact: rows.every((row) => columns.every(({ name }) => row[name] === row[`${name}_lower`] && row[name] === row[`${name}_upper`])),
    detail: view({
      name: `view_${at}`,
      columns: [...(isKeyed ? [{ name: 'key', type: 'TEXT', role: 'key' }] : []), ...columns],
      window: shape === 'all of time' ? null : { kind: 'tumble', size: 'PT1M', slide: 'PT1M' },
      order: shape === 'ranking' ? [{ column: 'f0', descending: true }] : [],
      limit: shape === 'ranking' ? 20 : null,
      coverage: { batch: batch && { ...batch, published: '2024-01-15T10:00:00Z', event_time: '2024-01-15T10:00:00Z' }, speed: { offsets: { tweets: { 0: [0, 10] } } } },
    }),
  }
}

test(`every figure on the page is the API's, for ${VIEWS} views of any values (seed ${seed})`, async (t) => {
  const invented = Array.from({ length: VIEWS }, (_, at) => invent(at))
  const byName = new Map(invented.map((one) => [one.detail.name, one]))
  const server = await serve({
    views: invented.map(({ detail }) => detail),
    rows(name, parameters) {
      const one = byName.get(name)
      const of = { sources: one.sources, exact: one.exact, total: one.rows.length }
      const limit = Number(parameters.get('limit') ?? 1000)
      if (!parameters.has('from')) return answer(one.rows.slice(0, limit), of)
      const said = parameters.get('mode') === 'batch' ? one.batch : one.merged
      return parameters.has('totals') ? answer([], { ...of, totals: said.totals }) : answer(said.rows, { ...of, total: said.rows.length })
    },
    update(name) {
      const { rows, sources, exact } = byName.get(name)
      return { ...answer(rows.toReversed(), { view: name, sources, exact }), reset: true, removed: [] }
    },
  })
  t.after(() => server.stop())
  const opened = await open(browser, server.url, { viewport: DESKTOP })
  await live(opened.page)
  await answered(opened.page, VIEWS)
  const { figures } = await compare(opened, server.url)
  assert.ok(figures > 10 * VIEWS, `only ${figures} figures were compared`)
  assert.deepEqual(opened.wrong, [])
  await opened.close()
})

test('a ranking is of all keys: what is cut says so', async (t) => {
  const total = 5321
  const detail = view({ name: 'clicks', window: { kind: 'tumble', size: 'PT1M', slide: 'PT1M' }, order: [], limit: null })
  const server = await serve({
    views: [detail, { ...detail, name: 'ever', window: null }],
    rows: (_, parameters) =>
      parameters.get('totals')
        ? answer([], { total, totals: [{ window_start: '2024-01-15T10:04:00Z', window_end: '2024-01-15T10:05:00Z', rows: total, mentions: 9000 }] })
        : answer(parameters.get('order') === 'mentions:desc' ? [{ hashtag: '#zzz', mentions: 5000 }] : [{ hashtag: '#aaa', mentions: 1 }], { total, truncated: true }),
  })
  t.after(() => server.stop())
  const { page, close } = await open(browser, server.url, { viewport: DESKTOP })
  for (const name of ['clicks', 'ever']) {
    const panel = page.locator(`article[aria-labelledby="view-${name}"]`)
    await panel.getByText('#zzz').waitFor()
    await panel.getByText(/first 1 of 5,321/).waitFor()
  }
  await page.locator('.read').getByText('9,000').waitFor()
  await close()
})
