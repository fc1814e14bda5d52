// What has stopped says so, and why; and what stands beside it goes on.

import assert from 'node:assert/strict'
import { mkdirSync, rmSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { after, before, test } from 'node:test'
import { answered, compare, showsUpTo } from './compare.mjs'
import { answer, serve, view } from './fake.mjs'
import { covers, DESKTOP, get, launch, live, open, PHONE, post, scrollsSideways, shot, start, TABLET, until, workFolder } from './support.mjs'

const SQL = `
CREATE TABLE clicks (user_id TEXT NOT NULL, page TEXT NOT NULL, ts TIMESTAMP NOT NULL) WITH (topic = 'clicks', event_time = 'ts');
CREATE MATERIALIZED VIEW top_pages AS
SELECT window_start, window_end, page, count(*) AS clicks
FROM TUMBLE(clicks, ts, INTERVAL '1 hour') GROUP BY window_start, window_end, page ORDER BY clicks DESC LIMIT 3;
CREATE MATERIALIZED VIEW clicks_per_minute AS
SELECT window_start, window_end, page, count(*) AS clicks
FROM TUMBLE(clicks, ts, INTERVAL '1 minute') GROUP BY window_start, window_end, page;
CREATE MATERIALIZED VIEW visits AS
SELECT window_start, window_end, user_id, count(*) AS clicks
FROM SESSION(clicks, ts, INTERVAL '30 minutes') GROUP BY window_start, window_end, user_id;
CREATE MATERIALIZED VIEW clicks_per_page AS SELECT page, count(*) AS clicks FROM clicks GROUP BY page;
`
const VIEWS = ['top_pages', 'clicks_per_minute', 'visits', 'clicks_per_page']

let browser
before(async () => (browser = await launch()))
after(() => browser?.close())

const panelOf = (page, name) => page.locator(`article[aria-labelledby="view-${name}"]`)
const isDim = (panel) =>
  panel.locator(':scope > :not(.problem, header)').evaluateAll((all) => all.map((one) => Number(getComputedStyle(one).opacity) < 0.6))

let minute = 0
const clicks = () => {
  minute += 1
  return Array.from({ length: 8 }, (_, at) => ({ user_id: `user_${at % 3}`, page: `/page/${at % 5}`, ts: `2024-01-15T10:${minute}0:0${at}Z` }))
}

async function shoot(page, name) {
  for (const [size, viewport] of Object.entries({ desktop: DESKTOP, tablet: TABLET, phone: PHONE })) {
    await page.setViewportSize(viewport)
    assert.equal(await scrollsSideways(page), false)
    await page.screenshot({ path: shot(`${name}-${size}`), fullPage: true })
  }
}

test('a view that has stopped is dim and says why, until it goes on; the others are as they were', async (t) => {
  const work = workFolder()
  mkdirSync(join(work, 'views'))
  writeFileSync(join(work, 'views', 'views.sql'), SQL)
  writeFileSync(join(work, 'anabranch.toml'), '[batch]\nscheduler = false\n')
  let server = start(work, '127.0.0.1:0')
  t.after(async () => {
    await server.stop()
    rmSync(work, { recursive: true, force: true })
  })
  const url = await server.url
  const restart = async (environment) => {
    await server.stop()
    server = start(work, new URL(url).host, environment)
    await server.url
  }
  await covers(url, 'clicks', [await post(url, 'clicks', clicks())])
  const opened = await open(browser, url, { viewport: DESKTOP })
  const { page } = opened
  await live(page)

  for (const failing of VIEWS) {
    await restart({ ANABRANCH_FAIL_AT: `speed::evaluate::${failing}=return` })
    await post(url, 'clicks', clicks())
    const { stopped } = await until(() => get(`${url}/v1/views/${failing}`), (view) => view.stopped !== null)
    await panelOf(page, failing).getByText(`Stopped: ${stopped}`, { exact: true }).waitFor()
    await live(page)
    for (const name of VIEWS) {
      const panel = panelOf(page, name)
      if (name !== failing) await panel.locator('.problem').waitFor({ state: 'detached' })
      const dim = await isDim(panel)
      assert.ok(dim.length > 1 && dim.every((is) => is === (name === failing)), `${name} while ${failing} has stopped: ${dim}`)
    }
    await panelOf(page, failing).getByText('incomplete', { exact: true }).waitFor()
    assert.equal(await panelOf(page, failing).getByText(/^exact/).count(), 0)
    if (failing === VIEWS[1]) await shoot(page, 'stopped')
  }

  await restart()
  await until(() => get(`${url}/v1/views`), ({ views }) => views.every(({ stopped, lag }) => stopped === null && lag === 0))
  await page.locator('.problem').first().waitFor({ state: 'detached' })
  await page.reload()
  await answered(page, VIEWS.length)
  await compare(opened, url)
  await opened.close()
})

test('an output that has stopped says at which partition, and why', async (t) => {
  const output = {
    kind: 'output',
    name: 'purchases',
    topic: 'events',
    sink: { kind: 'kafka', topic: 'purchases', delivery: 'exactly_once', partition_by: null },
    positions: { events: { 0: 1200, 1: 7 } },
    lag: 431,
    stopped: {},
  }
  const world = { views: [view({}), output], rows: () => answer([]), update: (name) => ({ ...answer([], { view: name }), reset: true, removed: [] }) }
  const server = await serve(world)
  t.after(() => server.stop())
  const { page, wrong, close } = await open(browser, server.url, { viewport: DESKTOP })
  const panel = page.locator('article[aria-labelledby="output-purchases"]')
  await panel.getByText('431 records').waitFor()
  await panel.getByText('written up to offset 0: 1,200 · 1: 7').waitFor()
  assert.deepEqual([...new Set(await isDim(panel))], [false])
  world.views = [view({}), { ...output, stopped: { 1: 'topic `purchases` doesn’t take a record of 1400 bytes' } }]
  await panel.getByText('Stopped at partition 1: topic `purchases` doesn’t take a record of 1400 bytes').waitFor()
  assert.deepEqual([...new Set(await isDim(panel))], [true])
  await shoot(page, 'output')
  assert.deepEqual(wrong, [])
  await close()
})
