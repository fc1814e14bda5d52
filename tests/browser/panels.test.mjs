// Views of every kind of window, what their answers were worth, and what holds them back.

import assert from 'node:assert/strict'
import { mkdirSync, rmSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { after, before, test } from 'node:test'
import * as support from './support.mjs'
import { DESKTOP, PHONE, launch, live, openDisclosures, scrollsSideways, shot, start, workFolder } from './support.mjs'

const SQL = `
CREATE TABLE clicks (user_id TEXT NOT NULL, page TEXT NOT NULL, ts TIMESTAMP NOT NULL)
WITH (topic = 'clicks', event_time = 'ts');
CREATE TABLE readings (device TEXT NOT NULL, ts TIMESTAMP NOT NULL)
WITH (topic = 'readings', event_time = 'ts', partitions = 2, partition_by = 'device');
CREATE MATERIALIZED VIEW visits AS
SELECT window_start, window_end, user_id, count(*) AS clicks
FROM SESSION(clicks, ts, INTERVAL '30 minutes') GROUP BY window_start, window_end, user_id;
CREATE MATERIALIZED VIEW pages_per_day AS
SELECT window_start, window_end, page, count(*) AS clicks
FROM TUMBLE(clicks, ts, INTERVAL '1 day', 'Europe/Paris') GROUP BY window_start, window_end, page;
CREATE MATERIALIZED VIEW top_pages AS
SELECT window_start, window_end, page, count(*) AS clicks, approx_count_distinct(user_id) AS users
FROM TUMBLE(clicks, ts, INTERVAL '1 hour') GROUP BY window_start, window_end, page ORDER BY clicks DESC LIMIT 3;
CREATE MATERIALIZED VIEW readings_per_device AS SELECT device, count(*) AS readings FROM readings GROUP BY device;
`
const SETTINGS = "[speed]\nidle_after = '1 day'\n[batch]\nscheduler = false\n"

const work = workFolder()
let server
let url
let browser

const open = (options) => support.open(browser, url, options)
const get = (path) => support.get(url + path)
const panel = (page, view) => page.locator(`article[aria-labelledby="view-${view}"]`)
const click = (user_id, page, time) => ({ user_id, page, ts: `2024-03-${time}Z` })

before(async () => {
  const project = join(work, 'project')
  mkdirSync(join(project, 'views'), { recursive: true })
  writeFileSync(join(project, 'views', 'views.sql'), SQL)
  writeFileSync(join(project, 'anabranch.toml'), SETTINGS)
  server = start(project, '127.0.0.1:0')
  url = await server.url
  browser = await launch()
  const many = Array.from({ length: 600 }, (_, at) => click(`user_${at}`, '/home', '30T10:30:00'))
  const { rejected } = await support.post(url, 'clicks', [
    ...many,
    click('ann', '/cart', '30T22:59:59'),
    click('ann', '/home', '30T23:10:00'), // in Paris it is the 31st, and the clock goes forward that night
    click('ben', '/home', '31T21:50:00'),
    click('ann', '/cart', '31T21:55:00'),
    click('ann', '/paid', '31T22:10:00'), // and here the 1st of April
    click('zoe', '/home', '30T10:59:00'), // much too late for its hour
  ])
  assert.deepEqual(rejected, [])
  await support.settled(url, 'top_pages')
})

after(async () => {
  await browser?.close()
  await server?.stop()
  rmSync(work, { recursive: true, force: true })
})

test('sessions say from when to when they were, how long, and whose', async () => {
  const { page, wrong, close } = await open({ viewport: DESKTOP })
  await live(page)
  const visits = panel(page, 'visits')
  const row = (user, start) => visits.locator('tr', { hasText: user }).filter({ hasText: start })
  await row('ann', '2024-03-31 21:55:00').getByText('22:40:00', { exact: true }).waitFor()
  await row('ben', '2024-03-31 21:50:00').getByText('30 min', { exact: true }).waitFor()
  const cells = await row('ann', '2024-03-31 21:55:00').locator('td').allInnerTexts()
  assert.deepEqual(cells, ['ann', '2024-03-31 21:55:00', '22:40:00', '45 min', '2'])
  await visits.getByText(/^Open: 2$/).waitFor()
  await visits.getByText('Where this comes from').click()
  await visits.getByText('session, ended by 30 min without an event').waitFor()
  await visits.screenshot({ path: shot('sessions') })

  await support.post(url, 'clicks', [click('ann', '/paid', '31T23:30:00')])
  await visits.getByText(/^Ended last: 2$/).waitFor()
  await row('ann', '2024-03-31 23:30:00').getByText('2024-04-01 00:00:00', { exact: true }).waitFor()
  assert.deepEqual(wrong, [])
  await close()
})

test('days of a time zone are named by its calendar', async () => {
  const { page, wrong, close } = await open({ viewport: DESKTOP })
  await live(page)
  const days = panel(page, 'pages_per_day')
  await days.locator('canvas').waitFor()
  await days.getByText('The chart as a table').click()
  const rows = days.locator('details').filter({ hasText: 'The chart as a table' }).locator('tbody tr')
  const said = async () => (await rows.allInnerTexts()).map((text) => text.split('\t'))
  assert.deepEqual(await said(), [
    ['2024-04-01', '–', '2', '2'],
    ['2024-03-31', '–', '3', '3'],
    ['2024-03-30', '–', '601', '601'], // one came too late; no run has made anything exact
  ])
  await days.getByText('2024-04-01 in Europe/Paris', { exact: true }).waitFor()
  await days.getByText('Where this comes from').click()
  await days.getByText('tumble, 1 d, by the calendar of Europe/Paris').waitFor()
  await days.screenshot({ path: shot('days') })
  assert.deepEqual(wrong, [])
  await close()
})

test('an answer says in words how surely its bounds hold and its rows are the right ones', async () => {
  const { page, wrong, close } = await open({ viewport: DESKTOP })
  await live(page)
  const top = panel(page, 'top_pages')
  await top.getByText('Where this comes from').click()
  await top.getByText('surely the first 3').waitFor()
  await top.getByText('hold for certain').waitFor()
  const { confidence } = await get('/v1/views/top_pages/rows?window=2024-03-30T11:00:00Z')
  assert.equal(confidence, 0.99, 'the hour with 600 users is sketched')
  assert.deepEqual(wrong, [])
  await close()
})

test('the audit tells late events from sketches and lists what was corrected', async () => {
  const { page, wrong, close } = await open({ viewport: DESKTOP })
  await live(page)
  const audit = page.locator('[data-testid=audit]')
  await audit.getByRole('combobox').selectOption('top_pages')
  await audit.getByText('Nothing to score yet.').waitFor()
  const job = await fetch(`${url}/v1/jobs`, {
    method: 'POST',
    headers: { 'content-type': 'application/json' },
    body: JSON.stringify({ kind: 'batch', views: ['top_pages'] }),
  })
  assert.equal(job.status, 202)
  await audit.locator('[data-testid=corrections]').waitFor()
  const { audits } = await get('/v1/views/top_pages/audit')
  const { corrections, version } = await get('/v1/views/top_pages/corrections')
  const of = (name) => audits[0].columns.find(({ column }) => column === name)
  assert.deepEqual([of('clicks').late.values, of('clicks').sketch.values], [1, 0])
  assert.equal(of('clicks').held, of('clicks').bounded)

  await audit.getByText(`version ${version}`, { exact: false }).first().waitFor()
  const row = (column) => audit.locator('table').first().locator('tr', { hasText: column })
  await row('clicks').getByText('1 value, median 1, worst 1 (0.2 %)').waitFor()
  await row('clicks').getByText('100 %').waitFor()
  const corrected = audit.locator('[data-testid=corrections] tbody tr')
  assert.equal(await corrected.count(), corrections.length)
  const late = corrected.filter({ hasText: 'came late' }).filter({ hasText: 'clicks' })
  assert.deepEqual(await late.locator('td').allInnerTexts(), [
    '2024-03-30 10:00 – 11:00 UTC',
    '/home',
    'clicks',
    '600',
    '601',
    'came late',
  ])
  await audit.screenshot({ path: shot('audit') })
  assert.deepEqual(wrong, [])
  await close()
})

test('a partition that holds the watermark back is named', async () => {
  const { page, wrong, close } = await open({ viewport: DESKTOP })
  await live(page)
  const holdUps = page.locator('[data-testid=hold-ups]')
  assert.equal(await holdUps.count(), 0)
  await support.post(url, 'readings', [{ device: 'one', ts: '2024-03-30T10:00:00Z' }])
  await support.settled(url, 'readings_per_device')
  const { partitions } = await get('/v1/views/readings_per_device')
  const { partition } = partitions.find(({ holds_back }) => holds_back)
  await holdUps.getByText(`Partition ${partition} of readings has had no event yet: the watermark waits for it.`).waitFor()
  const readings = panel(page, 'readings_per_device')
  await readings.getByText('Where this comes from').click()
  await readings.getByText(`${partition}: no event yet, waited for`).waitFor()
  await page.screenshot({ path: shot('hold-ups') })
  assert.deepEqual(wrong, [])
  await close()
})

test('all panels fit a desktop and a phone, light and dark', async () => {
  for (const [size, viewport] of Object.entries({ desktop: DESKTOP, phone: PHONE })) {
    for (const colorScheme of ['dark', 'light']) {
      const { page, wrong, close } = await open({ viewport, colorScheme, reducedMotion: 'reduce' })
      await live(page)
      await panel(page, 'visits').getByText(/^Open: 1$/).waitFor()
      await page.locator('[data-testid=trending-top_pages] li').waitFor()
      await page.locator('[data-testid=corrections]').waitFor()
      assert.equal(await scrollsSideways(page), false)
      await page.screenshot({ path: shot(`panels-${size}-${colorScheme}`), fullPage: true })
      await openDisclosures(page)
      assert.equal(await scrollsSideways(page), false)
      assert.deepEqual(wrong, [])
      await close()
    }
  }
})
