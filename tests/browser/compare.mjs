// Whether every figure on the page is the API's. The page is read first, so what it shows has to be settled.

import assert from 'node:assert/strict'
import { get } from './support.mjs'

const RANKS = 10
const WINDOWS = 60
const TOP = 8

/** Waits until every panel shows an answer. */
export const answered = (page, views) =>
  page.waitForFunction(
    (count) => {
      const panels = [...document.querySelectorAll('article[aria-labelledby^=view-]')]
      const isAnswered = (panel) => [...panel.querySelectorAll('dt')].some((term) => term.textContent === 'Bounds') && !/Waiting for/.test(panel.textContent)
      return panels.length === count && panels.every(isAnswered)
    },
    views,
  )

/** Waits until the panels of the views that are `wanted` show what the layers hold now. */
export async function showsUpTo(page, url, wanted) {
  const { views } = await get(`${url}/v1/views`)
  const speed = views.filter(wanted).map(({ name, coverage }) => [name, `offsets ${offsets(coverage.speed.offsets)}`])
  await page.waitForFunction(
    (all) =>
      all.every(([view, said]) =>
        [...document.querySelectorAll(`article[aria-labelledby="view-${view}"] details dl div`)].some(
          (fact) => fact.querySelector('dt').textContent === 'Speed' && fact.querySelector('dd').textContent.trim() === said,
        ),
      ),
    speed,
  )
}

/** Has each chart that has a choice show the last of its figures. */
export async function chooseLast(page) {
  await page.evaluate(() => {
    for (const select of document.querySelectorAll('article[aria-labelledby^=view-] select')) {
      select.selectedIndex = select.options.length - 1
      select.dispatchEvent(new Event('change', { bubbles: true }))
    }
  })
  await page.waitForFunction(() =>
    [...document.querySelectorAll('article[aria-labelledby^=view-]:has(select):has(.read)')].every(
      (panel) => panel.querySelector('.read').lastElementChild.textContent.split(',')[0] === panel.querySelector('select').value,
    ),
  )
}

/** What the page shows: each view's panel, and the tables that are about all views. */
async function read(page) {
  await page.evaluate(() => document.querySelectorAll('article button[aria-expanded=false]').forEach((button) => button.click()))
  const shown = await page.waitForFunction(() => {
    // What is stale says of when it is, and isn't compared.
    const isLive = document.querySelector('[data-testid=connection]').textContent.trim() === 'live'
    if (!isLive || document.querySelector('.panel.stale')) return null
    const all = (root, selector, of) => [...root.querySelectorAll(selector)].map(of)
    const text = (element) => element?.textContent.trim()
    const figure = (data) => ({
      value: data.value,
      text: data.textContent,
      bounds: data.previousElementSibling?.matches('.bounds') ? data.previousElementSibling.textContent : null,
    })
    const keys = (root) => all(root, 'bdi, i', (key) => (key.localName === 'i' ? null : key.textContent))
    const facts = (list) => Object.fromEntries(all(list, 'div', (fact) => [text(fact.querySelector('dt')), text(fact.querySelector('dd'))]))
    const rows = (table, selector = 'tbody tr') =>
      all(table, selector, (row) => ({
        keys: all(row, 'td.key', keys).flat(),
        times: all(row, 'td.time', text),
        figures: all(row, 'td data', figure),
      }))
    const panels = all(document, 'article[aria-labelledby^=view-]', (panel) => ({
      view: panel.querySelector('h3').title,
      text: panel.textContent,
      badges: all(panel, 'header > .badge', text),
      chosen: panel.querySelector('header select')?.value,
      ranks: all(panel, 'ol li', (row) => ({ keys: keys(row.querySelector('.name')), figures: all(row, 'data', figure) })),
      tables: all(panel, 'table:not(.tall table)', (table) => ({ caption: text(table.caption), rows: rows(table) })),
      read: all(panel, '.read data', figure)[0],
      legend: all(panel, '.legend li', (part) => ({ text: text(part), figure: all(part, 'data', figure)[0] })),
      chart: all(panel, '.tall tbody tr', (row) => ({ end: Date.parse(row.dataset.end), figures: all(row, 'data', figure) })),
      facts: facts(panel.querySelector('details dl')),
    }))
    const frontiers = all(document, '[data-label=version]', (version) => {
      const row = version.parentElement
      const cell = (label) => text(row.querySelector(`[data-label=${label}]`))
      return [cell('view'), cell('version'), cell('behind')]
    })
    return { panels, frontiers, pulse: facts(document.querySelector('[aria-label=Pulse] dl')) }
  })
  return shown.jsonValue()
}

const whole = new Intl.NumberFormat('en', { maximumFractionDigits: 0 })
const isInteger = (cell) => typeof cell === 'bigint' || Number.isSafeInteger(cell)
const plain = (cell) => (cell === null ? '' : String(cell))
const time = (text) => text.replace('T', ' ').replace('Z', '')
const sum = (all) => all.reduce((a, b) => a + b, 0)

/** Whether a text is how the page writes a cell: of a number with a fraction six digits are as good as all. */
function isSaid(text, cell, type) {
  if (cell === null) return text === '–'
  if (isInteger(cell)) return text === whole.format(cell)
  if (typeof cell !== 'number') return text === (type === 'TIMESTAMP' ? time(cell) : String(cell))
  return Math.abs(Number(text.replaceAll(',', '')) - cell) <= 5.1e-6 * Math.abs(cell)
}

/** Whether a text names both bounds. */
function isBounds(text, lower, upper, type) {
  if (lower === null && upper === null) return text === 'bounds unknown'
  const isBound = (said, bound) => (bound === null ? said === 'unknown' : isSaid(said, bound, type))
  const splits = [...text.matchAll(/ – |–/g)]
  return splits.some(({ 0: by, index }) => isBound(text.slice(0, index), lower) && isBound(text.slice(index + by.length), upper))
}

const range = ([first, next]) => `${whole.format(first)}–${whole.format(next)}`
const offsets = (topics) =>
  Object.values(topics ?? {})
    .flatMap((ranges) => Object.entries(ranges))
    .map(([partition, both]) => `${partition}: ${range(both)}`)
    .join(' · ') || 'none'

/** The order of numbers, in which there is one NaN, above all others. */
const isAbove = (a, b) => a > b || (Number.isNaN(a) && !Number.isNaN(b))
const toFigure = (cell) => (typeof cell === 'string' ? Number(cell) : (cell ?? null))

/** Compares the panels of the views that are `wanted` with the API; says how many figures of which kind there were. */
export async function compare({ page, ranges }, url, wanted = () => true) {
  const { panels, frontiers, pulse } = await read(page)
  const { views } = await get(`${url}/v1/views`)
  const byName = new Map(panels.map((panel) => [panel.view, panel]))
  assert.equal(byName.size, panels.length)
  assert.deepEqual([...byName.keys()].sort(), views.map(({ name }) => name).sort())
  compareAll(views, frontiers, pulse)
  const seen = {}
  for (const view of views.filter(wanted)) await new Check(view, byName.get(view.name), url, ranges.get(view.name), seen).run()
  return seen
}

function compareAll(views, frontiers, pulse) {
  const wanted = views.map(({ name, coverage, lag }) => [name, String(coverage.batch?.version ?? 'none yet'), whole.format(lag)])
  assert.deepEqual(frontiers, wanted)
  const topics = [...new Set(views.map(({ topic }) => topic))]
  const perTopic = (of) => whole.format(sum(topics.map((topic) => Math.max(...views.filter((view) => view.topic === topic).map(of)))))
  const starts = (name, said) => assert.match(pulse[name], new RegExp(`^${said}(?!\\d|,)`), name)
  starts('Records behind', perTopic(({ lag }) => lag))
  starts('Late', perTopic(({ late }) => late))
  starts('Rejected', perTopic(({ rejected }) => rejected))
}

/** One view's panel beside the API's answers. */
class Check {
  constructor(view, panel, url, asked, seen) {
    Object.assign(this, { view, panel, url, asked, seen })
    const columns = (role) => view.columns.filter((column) => column.role === role)
    this.keys = columns('key')
    this.aggregates = columns('aggregate')
  }

  rows(parameters) {
    return get(`${this.url}/v1/views/${encodeURIComponent(this.view.name)}/rows?${new URLSearchParams(parameters)}`)
  }

  equal(got, wanted, what) {
    assert.deepEqual(got, wanted, `${this.view.name}: ${what}`)
  }

  ok(is, what, ...shown) {
    assert.ok(is, `${this.view.name}: ${what}: ${shown.map((one) => JSON.stringify(one, (_, cell) => (typeof cell === 'bigint' ? `${cell}n` : cell))).join(' and ')}`)
  }

  /** Counts a figure, as of these kinds. */
  count(kinds) {
    for (const kind of ['figures', ...Object.keys(kinds).filter((kind) => kinds[kind])]) this.seen[kind] = (this.seen[kind] ?? 0) + 1
  }

  async run() {
    const { window, limit } = this.view
    assert.doesNotMatch(this.panel.text, /unknown–unknown|NaN undefined|\[object/, this.view.name)
    if (!window) return this.table()
    if (window.kind === 'session') return this.sessions()
    return limit === null ? this.overTime() : this.ranking()
  }

  figure(got, cell, { name, type }, row) {
    this.ok(got !== undefined && got.value === plain(cell) && isSaid(got.text, cell, type), name, got, cell)
    this.count({
      null: cell === null,
      empty: cell === '',
      'beyond 2^53': typeof cell === 'bigint' && cell > 0n,
      'beyond -2^53': typeof cell === 'bigint' && cell < 0n,
      infinite: type === 'DOUBLE' && typeof cell === 'string',
      [type]: true,
    })
    const [lower, upper] = ['lower', 'upper'].map((bound) => row?.[`${name}_${bound}`] ?? null)
    if (!row || (lower === cell && upper === cell)) return this.ok(got.bounds === null, `${name} has no bounds`, got, row)
    this.count({ bounded: true })
    this.ok(got.bounds !== null && isBounds(got.bounds, lower, upper, type), `the bounds of ${name}`, got, [lower, upper])
  }

  key(row) {
    return this.keys.map(({ name, type }) => (row[name] === null ? null : type === 'TIMESTAMP' ? time(row[name]) : plain(row[name])))
  }

  row(got, row, columns = this.aggregates) {
    this.equal(got.keys, this.key(row), 'the key')
    this.equal(got.figures.length, columns.length, 'figures')
    for (const [at, column] of columns.entries()) this.figure(got.figures[at], row[column.name], column, row)
  }

  list(got, rows, columns) {
    this.equal(got.length, rows.length, 'rows')
    for (const [at, row] of rows.entries()) this.row(got[at], row, columns)
  }

  /** Rows whose order is not said: each is there once. */
  set(got, rows, name) {
    this.equal(got.length, rows.length, 'rows')
    const left = [...rows]
    for (const one of got) {
      const [start, until] = one.times
      const of = JSON.stringify([start, one.keys])
      const at = left.findIndex((row) => JSON.stringify([time(row.window_start), this.key(row)]) === of)
      this.ok(at >= 0 && time(left[at].window_end).endsWith(until), `a session of ${name}`, one, left[at])
      this.row(one, left.splice(at, 1)[0])
    }
  }

  /** The badges, where there are rows that they are about. */
  badges({ exact, incomplete, late, total, confidence }) {
    this.count({ exact: exact && total > 0, late: late > 0, sketched: confidence < 1, uncertain: !exact && late === 0 && confidence === 1 })
    const wanted = [exact ? /^exact$/ : late > 0 ? new RegExp(`^approximate: .*${whole.format(late)} event`) : /^approximate: \w/, ...(incomplete ? [/^incomplete$/] : [])]
    const isRight = total === 0 ? this.panel.badges.length === 0 : wanted.length === this.panel.badges.length
    this.ok(isRight && this.panel.badges.every((badge, at) => wanted[at].test(badge)), 'badges', this.panel.badges, { exact, incomplete, late })
  }

  facts(answer) {
    const { facts } = this.panel
    const { batch, speed } = this.view.coverage
    const part = answer.sources.batch ?? batch
    this.equal(facts['Batch, exact'], part ? `version ${part.version}, offsets ${offsets(part.offsets)}` : 'no version yet', 'version')
    this.equal(facts.Speed, `offsets ${offsets((answer.sources.speed ?? speed)?.offsets)}`, 'offsets')
    this.equal([facts.Late, facts.Rejected], [answer.late, answer.rejected].map(whole.format), 'late and rejected')
    this.ok(answer.confidence < 1 === /probability/.test(facts.Bounds), 'confidence', facts.Bounds, answer.confidence)
    if (this.view.limit !== null) this.ok(answer.certain === /^surely/.test(facts.Rows), 'certain', facts.Rows, answer.certain)
    this.equal(facts.Missing === 'nothing', !answer.incomplete, 'missing')
  }

  async ranking() {
    const answer = await this.rows({ window: 'current' })
    const main = this.aggregates.find(({ name }) => name === this.view.order[0]?.column) ?? this.aggregates[0]
    this.ok(this.panel.ranks.length >= Math.min(RANKS, answer.rows.length), 'ranks', this.panel.ranks.length, answer.rows.length)
    this.list(this.panel.ranks, answer.rows, [main, ...this.aggregates.filter((column) => column !== main)])
    this.badges(answer)
    this.facts(answer)
  }

  async table() {
    const [by] = this.view.order.length > 0 ? [] : this.aggregates
    const answer = await this.rows({ limit: 20, ...(by && { order: `${by.name}:desc` }) })
    this.list(this.panel.tables[0]?.rows ?? [], answer.rows)
    this.badges(answer)
    this.facts(answer)
  }

  async sessions() {
    const open = await this.rows({ window: 'current' })
    const ended = this.asked ? await this.rows(this.asked) : { rows: [], total: 0 }
    if (open.total + ended.total > 0) {
      for (const [at, answer] of [open, ended].entries()) {
        const { caption, rows } = this.panel.tables[at]
        const listed = rows.filter(({ times }) => times.length > 0)
        this.set(listed, answer.rows, caption)
        const count = answer.rows.length < answer.total ? `: first ${whole.format(answer.rows.length)} of ${whole.format(answer.total)}` : answer.total > 0 ? `: ${whole.format(answer.total)}` : ''
        this.equal(caption, ['Open', 'Ended last'][at] + count, 'caption')
      }
    }
    this.badges(open)
    this.facts(open)
  }

  async overTime() {
    const { asked, panel } = this
    const current = await this.rows({ window: 'current', limit: 1 })
    if (!asked) return this.ok(panel.chart.length === 0, 'no range was asked for', panel.chart)
    const merged = await this.rows(asked)
    const { batch: version } = this.view.coverage
    const batch = version && (await this.rows({ ...Object.fromEntries(asked), mode: 'batch' }))
    const numeric = this.aggregates.filter(({ type }) => type === 'BIGINT' || type === 'DOUBLE')
    const column = numeric.find(({ name }) => name === panel.chosen) ?? numeric.find(({ additive }) => additive) ?? numeric[0]
    if (column) this.chart(column, readings(merged, column), batch && readings(batch, column), merged)
    const newest = Math.max(...panel.chart.map(({ end }) => end))
    if (column && current.window && merged.total > 0) this.ok(newest >= Date.parse(current.window.end), 'the newest window is in the chart', newest, current.window)
    const top = await this.rows({ window: 'current', limit: TOP, ...(column && this.keys.length > 0 && { order: `${column.name}:desc` }) })
    const isTable = this.keys.length > 0 || panel.chart.length === 0
    this.list(panel.tables[0]?.rows ?? [], isTable ? top.rows : [])
    this.badges(merged)
    this.facts(merged)
  }

  /** The chart as a table, newest first, and what is read off it. */
  chart(column, merged, batch, answer) {
    const { chart, read, legend } = this.panel
    const ends = [...new Set([...merged.keys(), ...(batch?.keys() ?? [])])].sort((a, b) => b - a)
    this.equal(chart.map(({ end }) => end), [...new Set(chart.map(({ end }) => end))].sort((a, b) => b - a), 'windows, newest first')
    const oldest = chart.at(-1)?.end ?? Infinity
    for (const [at, end] of ends.entries()) this.ok(end < oldest ? chart.length === WINDOWS : chart.some((row) => row.end === end), `window ${at}`, end, chart.length)
    const none = column.additive ? 0 : null
    for (const { end, figures } of chart) {
      const [both, done] = [merged.get(end), batch?.get(end)]
      const total = both ? both.value : none
      const exact = !batch ? null : done ? done.value : none
      const [said, ...more] = figures
      this.figure(said, exact, column)
      this.figure(more.at(-1), total, column)
      this.equal(more.length, column.additive ? 2 : 1, 'figures of a window')
      if (column.additive) this.split(figures, column, batch !== null && exact === null)
    }
    if (chart.length === 0) return this.equal(read, undefined, 'read')
    const [newest] = chart
    this.equal(read, { ...newest.figures.at(-1) }, 'read')
    const [said, speed] = legend
    this.equal(said.figure, batch ? newest.figures[0] : undefined, 'what batch has said')
    if (!batch) this.ok(said.text.endsWith('none yet'), 'what batch has said', said.text)
    this.equal(speed.figure, newest.figures[1], 'what the speed layer adds')
    const isUnsure = answer.incomplete || (merged.get(newest.end)?.isUnsure ?? false)
    this.ok(speed.text.includes(isUnsure ? 'approximate' : 'exact so far'), 'how sure', speed.text, isUnsure)
  }

  /** What is exact and what isn't make the total. */
  split([exact, adds, total], { type }, isUnknown) {
    if (total.value === '' || isUnknown) return this.equal(adds.value, '', 'what the speed layer adds')
    this.count({ split: exact.value !== '' && adds.value !== '0' })
    if (type === 'BIGINT') return this.equal(BigInt(exact.value) + BigInt(adds.value), BigInt(total.value), 'the sum of both layers')
    const numbers = [exact, adds, total].map(({ value }) => Number(value))
    if (!Number.isFinite(numbers[0]) && exact.value !== '') return this.equal(adds.value, '', 'what the speed layer adds')
    const off = Math.abs(numbers[0] + numbers[1] - numbers[2])
    this.ok(Object.is(numbers[0] + numbers[1], numbers[2]) || off <= 1e-9 * Math.max(...numbers.map(Math.abs)), 'the sum of both layers', numbers)
  }
}

/** Each window's figure by its end: the total over keys, or the extreme of them; and whether bounds are others. */
function readings({ totals, rows }, { name, additive, function: of }) {
  const byEnd = new Map()
  for (const row of additive ? totals : rows) {
    const end = Date.parse(row.window_end)
    const before = byEnd.get(end) ?? { value: null, isUnsure: false }
    const cell = row[name]
    const isUnsure = before.isUnsure || row[`${name}_lower`] !== cell || row[`${name}_upper`] !== cell
    const [one, other] = [toFigure(cell), toFigure(before.value)]
    const wins = one !== null && (other === null || (of === 'min' ? isAbove(other, one) : isAbove(one, other)))
    byEnd.set(end, { value: wins ? cell : before.value, isUnsure })
  }
  return byEnd
}
