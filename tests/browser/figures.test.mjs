// Every figure on the page is the API's: for 200 random views, of every shape, with any values; and the seams where it once wasn't.

import assert from 'node:assert/strict'
import { after, before, test } from 'node:test'
import { answer, serve, view } from './fake.mjs'
import { DESKTOP, launch, live, open, PHONE, shot, TABLET } from './support.mjs'

let browser
before(async () => (browser = await launch()))
after(() => browser?.close())

const seed = Number(process.env.ANABRANCH_SEED ?? 20240115)
const VIEWS = 200
const NEWEST = Date.parse('2024-01-15T10:05:00Z')
const MINUTE = 60_000
const iso = (ms) => new Date(ms).toISOString().replace('.000Z', 'Z')

function randomOf(start) {
  let state = start
  const random = () => (state = (state * 48271) % 2147483647) / 2147483647
  const below = (most) => Math.floor(random() * most)
  return { random, below, pick: (all) => all[below(all.length)] }
}

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
      return pick([random() * 1e4 - 5e3, random() * 1e9, -random(), random() * 1e17, 0.1 + 0.2])
    case 'TIMESTAMP':
      return pick(['2024-01-15T10:04:00Z', '2024-01-15T10:04:00.25Z', '2024-01-15T10:04:00.250001Z'])
    default:
      return pick(['a', 'b <b>', 'ü', '\u{1f600}'])
  }
}

/** A cell, its bounds, and mostly the same three times. */
function bounded(chance, column, name = column.name) {
  const cell = value(chance, column)
  const off = chance.random() < 0.2
  return { [name]: cell, [`${name}_lower`]: off ? value(chance, column) : cell, [`${name}_upper`]: off ? value(chance, column) : cell }
}

/** A random view with all answers about it. */
function invent(at) {
  const chance = randomOf(seed + at * 7919)
  const shape = ['all of time', 'windows', 'ranking'][at % 3]
  const columns = Array.from({ length: 1 + chance.below(3) }, (_, i) => ({ name: `f${i}`, role: 'aggregate', ...chance.pick(FUNCTIONS) }))
  const isKeyed = shape !== 'windows' || chance.random() < 0.8
  const total = isKeyed ? chance.below(12) + 1 : 1
  const rows = Array.from({ length: total }, (_, i) => Object.assign({ key: `key ${i}` }, ...columns.map((column) => bounded(chance, column))))
  const ends = Array.from({ length: 4 }, (_, i) => NEWEST - i * MINUTE).reverse()
  const times = (end) => ({ window_start: iso(end - MINUTE), window_end: iso(end) })
  const totals = () =>
    ends.map((end) => Object.assign(times(end), { rows: total }, ...columns.filter(({ additive }) => additive).map((column) => bounded(chance, column))))
  const range = () => ends.flatMap((end) => rows.map((row) => ({ ...row, ...times(end), ...Object.assign({}, ...columns.map((column) => bounded(chance, column))) })))
  const version = chance.random() < 0.6 ? 1 + chance.below(9) : null
  const batch = version && { version, offsets: { 0: [0, 5] } }
  return {
    shape,
    columns,
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
      coverage: { batch: batch && { ...batch, published: '2024-01-15T10:00:00Z', event_time: '2024-01-15T10:00:00Z' }, speed: { offsets: { 0: [0, 10] } } },
    }),
  }
}

const whole = new Intl.NumberFormat('en', { maximumFractionDigits: 0 })
const shown = (figure) => (figure === null ? '–' : whole.format(figure))
const plain = (cell) => (cell === null ? '' : String(cell))

test(`every figure on the page is the API's, for ${VIEWS} random views (seed ${seed})`, async (t) => {
  const invented = Array.from({ length: VIEWS }, (_, at) => invent(at))
  const byName = new Map(invented.map((one) => [one.detail.name, one]))
  const server = await serve({
    views: invented.map(({ detail }) => detail),
    rows(name, parameters) {
      const one = byName.get(name)
      const of = { sources: one.sources, exact: one.exact, total: one.rows.length }
      if (!parameters.has('from')) return answer(one.rows.slice(0, Number(parameters.get('limit'))), of)
      const said = parameters.get('mode') === 'batch' ? one.batch : one.merged
      return parameters.has('totals') ? answer([], { ...of, totals: said.totals }) : answer(said.rows, { ...of, total: said.rows.length })
    },
    update: (name) => ({ ...answer(byName.get(name).rows, { view: name, exact: byName.get(name).exact }), reset: true, removed: [] }),
  })
  t.after(() => server.stop())
  const { page, wrong, close } = await open(browser, server.url, { viewport: DESKTOP })
  page.setDefaultTimeout(120_000)
  await live(page)
  await page.waitForFunction((count) => document.querySelectorAll('article[aria-labelledby^=view-]').length === count, VIEWS)
  await page.waitForFunction(() => [...document.querySelectorAll('article[aria-labelledby^=view-]')].every((panel) => panel.querySelector('data')))
  let compared = 0
  const equal = (got, wanted, what) => {
    assert.deepEqual(got, wanted, what)
    compared += wanted.length
  }
  const panels = await page.evaluate(() =>
    [...document.querySelectorAll('article[aria-labelledby^=view-]')].map((panel) => ({
      name: panel.querySelector('h3').title,
      text: panel.textContent,
      doubts: [...panel.querySelectorAll('.badge.approximate')].map((badge) => badge.textContent),
      keys: [...panel.querySelectorAll('[data-testid=key], td.key')].map((cell) => cell.textContent),
      cells: [...panel.querySelectorAll('td data, ol data')].map(({ value }) => value),
      texts: [...panel.querySelectorAll('td data, ol data')].map((cell) => cell.textContent),
      read: panel.querySelector('.read data')?.value,
      chart: [...panel.querySelectorAll('.tall tbody tr')].map((row) => [...row.querySelectorAll('.figure')].map((cell) => cell.textContent)),
    })),
  )
  assert.equal(panels.length, VIEWS)
  for (const { name, text, doubts, keys, cells, texts, read, chart } of panels) {
    const { shape, columns, rows, merged, batch, sources, exact } = byName.get(name)
    assert.doesNotMatch(text, /unknown–unknown|none that this view counts/, name)
    assert.equal(doubts.length, exact ? 0 : 1, name)
    for (const doubt of doubts) assert.match(doubt, /^approximate: \w/, 'it always says why')
    if (shape === 'ranking') {
      const by = new Map(rows.map((row) => [row.key, row]))
      equal(cells, keys.map((key) => plain(by.get(key).f0)), name)
      assert.equal(keys.length, Math.min(10, rows.length), name)
      const order = keys.map((key) => by.get(key).f0)
      for (const [at, one] of order.slice(1).entries()) {
        const before = order[at]
        assert.ok(one === null || (before !== null && (typeof one === 'string' || before >= one)), `${name}: ${before} before ${one}`)
      }
      continue
    }
    const isTable = shape === 'all of time' || columns.length > 0
    const first = shape === 'all of time' ? rows : keys.length > 0 || !read ? rows.slice(0, 8) : []
    assert.ok(isTable)
    equal(cells, first.flatMap((row) => columns.map((column) => plain(row[column.name]))), name)
    texts.forEach((said, at) => {
      const column = columns[at % columns.length]
      if (column.type === 'BIGINT' && cells[at] !== '') assert.equal(said, whole.format(BigInt(cells[at])), name)
    })
    const numeric = columns.filter(({ type }) => type === 'BIGINT' || type === 'DOUBLE')
    const column = numeric.find(({ additive }) => additive) ?? numeric[0]
    if (shape !== 'windows' || !column) continue
    if (column.additive) {
      const totals = merged.totals.toReversed().map((total) => total[column.name])
      equal([read], [plain(totals[0])], name)
      if (column.type !== 'BIGINT') continue
      const said = batch.totals.toReversed().map((total) => (sources.batch ? total[column.name] : null))
      const wanted = totals.map((total, at) => [
        shown(said[at]),
        total === null ? '–' : whole.format(BigInt(total) - BigInt(said[at] ?? 0)),
        shown(total),
      ])
      equal(chart, wanted, name)
    } else {
      const extreme = merged.rows.filter(({ window_end }) => window_end === iso(NEWEST)).map((row) => row[column.name]).filter((cell) => cell !== null)
      const best = extreme.reduce((a, b) => ((column.function === 'min' ? b < a : b > a) ? b : a), extreme[0] ?? null)
      equal([read], [plain(best)], name)
    }
  }
  assert.ok(compared > 5 * VIEWS, `only ${compared} figures were compared`)
  assert.deepEqual(wrong, [])
  for (const [size, viewport] of Object.entries({ desktop: DESKTOP, tablet: TABLET, phone: PHONE })) {
    await page.setViewportSize(viewport)
    for (const colorScheme of ['light', 'dark']) {
      await page.emulateMedia({ colorScheme })
      await page.screenshot({ path: shot(`figures-${size}-${colorScheme}`) })
    }
  }
  await close()
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
