// The dashboard as a person meets it, on a fresh project: `support.mjs` says what it takes.

import assert from 'node:assert/strict'
import { cpSync, existsSync, rmSync } from 'node:fs'
import { basename, join } from 'node:path'
import { after, before, test } from 'node:test'
import { fileURLToPath } from 'node:url'
import * as support from './support.mjs'
import { DESKTOP, PHONE, launch, live, openDisclosures, scrollsSideways, shot, start, workFolder } from './support.mjs'

const HOSTILE = '<img src=x onerror="window.ranEventText=1">'
const examples = process.env.ANABRANCH_EXAMPLES ?? fileURLToPath(new URL('../../examples', import.meta.url))
const work = workFolder()
const project = join(work, 'social')

let server
let url
let browser

const open = (options) => support.open(browser, url, options)
const get = (path) => support.get(url + path)
const post = (topic, records) => support.post(url, topic, records)

before(async () => {
  // Both examples' views in one project: a ranking over tweets and totals over page views.
  for (const example of ['social', 'clicks']) {
    const source = join(examples, example)
    assert.ok(existsSync(source), `no example project at ${source}`)
    cpSync(source, project, { recursive: true, filter: (path) => basename(path) !== '.anabranch' })
  }
  server = start(project, '127.0.0.1:0')
  url = await server.url
  browser = await launch()
})

after(async () => {
  await browser?.close()
  await server?.stop()
  rmSync(work, { recursive: true, force: true })
})

// One moment for every event, so that no window ends in the middle of the test.
const moment = new Date(Date.now() - 20_000).toISOString()
let posted = 0

const tweets = (count, text, user = (at) => `user_${at}`) =>
  post(
    'tweets',
    Array.from({ length: count }, () => {
      posted += 1
      return { id: `tweet_${posted}`, user_id: user(posted), text, timestamp: moment }
    }),
  )

const pageViews = (count) =>
  post(
    'page_views',
    Array.from({ length: count }, (_, at) => ({
      event_type: 'page_view',
      user_id: `user_${at}`,
      method: 'GET',
      url: `/page/${at % 3}`,
      status: 200,
      bytes: 1000,
      referrer: '/',
      user_agent: 'test',
      timestamp: moment,
    })),
  )

async function trendingView() {
  const { views } = await get('/v1/views')
  const view = views.find(({ topic, window, limit }) => topic === 'tweets' && window && limit !== null)
  assert.ok(view, 'the example has no ranked view over tweets')
  return view
}

const leads = (page, view, hashtag) =>
  page.waitForFunction(
    ([list, wanted]) =>
      document.querySelector(`[data-testid="${list}"] li:first-child [data-testid=key]`)?.textContent?.trim() === wanted,
    [`trending-${view.name}`, hashtag],
  )

test('an empty project says how to fill it', async () => {
  const { page, wrong, close } = await open({ viewport: DESKTOP })
  await page.getByText(`${url}/v1/topics/tweets/events`).first().waitFor()
  await page.screenshot({ path: shot('empty'), fullPage: true })
  assert.deepEqual(wrong, [])
  await close()
})

test('a hashtag rises to first without a reload', async () => {
  const view = await trendingView()
  const { page, response, wrong, close } = await open({ viewport: DESKTOP, colorScheme: 'dark' })
  const policy = response.headers()['content-security-policy'] ?? ''
  assert.match(policy, /default-src 'none'/)
  assert.doesNotMatch(policy, /unsafe-/)
  await live(page)
  await page.evaluate(() => (window.sameDocument = true))

  assert.deepEqual((await tweets(5, 'a quiet evening #calm')).rejected, [])
  await leads(page, view, '#calm')
  await tweets(3, 'something stirs #rising')
  await page.locator('[data-testid=key]', { hasText: '#rising' }).first().waitFor()
  await leads(page, view, '#calm')
  await tweets(9, 'there it goes #Rising')
  await leads(page, view, '#rising')

  assert.equal(await page.evaluate(() => window.sameDocument), true)
  await page.screenshot({ path: shot('desktop-dark') })
  assert.deepEqual(wrong, [])
  await close()
})

test('totals over time tell what is exact from what is not', async () => {
  const { page, wrong, close } = await open({ viewport: DESKTOP, colorScheme: 'dark' })
  await live(page)
  assert.deepEqual((await pageViews(12)).rejected, [])

  const charted = ({ topic, window, limit }) => topic === 'page_views' && window && limit === null
  const view = (await get('/v1/views')).views.find(charted)
  assert.ok(view, 'the example has no unlimited view over windows of page views')
  const panel = page.locator(`article[aria-labelledby="view-${view.name}"]`)
  await support.settled(url, view.name)
  const figure = view.columns.find(({ role }) => role === 'aggregate').name
  const { rows } = await get(`/v1/views/${view.name}/rows?window=latest`)
  const total = rows.reduce((sum, row) => sum + row[figure], 0)
  assert.ok(total > 0, `no ${figure} in ${JSON.stringify(rows)}`)

  await panel.locator('canvas').waitFor()
  await panel.getByText('batch, exact: none yet', { exact: true }).waitFor()
  await panel.getByText(new RegExp(`speed, [a-z ]+: ${total}$`)).waitFor()

  const job = await fetch(`${url}/v1/jobs`, {
    method: 'POST',
    headers: { 'content-type': 'application/json' },
    body: JSON.stringify({ kind: 'batch', views: [view.name] }),
  })
  assert.equal(job.status, 202)
  await panel.getByText(`batch, exact: ${total}`, { exact: true }).waitFor()
  await panel.getByText(/speed, [a-z ]+: 0$/).waitFor()
  await panel.screenshot({ path: shot('over-time') })
  assert.deepEqual(wrong, [])
  await close()
})

test('event text is shown as text and runs nothing', async () => {
  const { page, wrong, close } = await open({ viewport: DESKTOP })
  await live(page)
  await tweets(40, `#rising ${HOSTILE} #<b>bold</b>`, () => HOSTILE)
  const broken = `{"id": "1", "user_id": "${HOSTILE.replaceAll('"', "'")}", "text": "no end`
  assert.equal((await post('tweets', [broken])).rejected.length, 1)

  // Wherever a view answers with the text, the page shows it.
  const { views } = await get('/v1/views')
  for (const view of views.filter(({ topic, window }) => topic === 'tweets' && !window)) {
    const holds = ({ rows }) => rows.some((row) => Object.values(row).includes(HOSTILE))
    if (!holds(await get(`/v1/views/${view.name}/rows`))) continue
    await page.locator(`article[aria-labelledby="view-${view.name}"]`).getByText(HOSTILE).first().waitFor()
  }

  await page.getByRole('button', { name: 'List rejects' }).click()
  await page.getByRole('dialog').getByText("<img src=x onerror='window.ranEventText=1'>").waitFor()
  await page.screenshot({ path: shot('rejects') })
  await page.keyboard.press('Escape')
  await page.getByRole('dialog').waitFor({ state: 'hidden' })

  await openDisclosures(page)
  assert.equal(await page.locator('img, #app b').count(), 0)
  assert.equal(await page.evaluate(() => window.ranEventText), undefined)
  assert.deepEqual(wrong, [])
  await close()
})

test('the keyboard alone starts a batch run, and it succeeds', async () => {
  const { page, wrong, close } = await open({ viewport: DESKTOP, colorScheme: 'light' })
  await live(page)
  const earlier = (await get('/v1/jobs')).jobs.map(({ id }) => id)
  const button = page.getByRole('button', { name: 'Run batch now' })
  await button.waitFor()

  const focused = () => button.evaluate((element) => element === document.activeElement)
  for (let presses = 0; !(await focused()); presses += 1) {
    assert.ok(presses < 100, 'Tab never reaches the button')
    await page.keyboard.press('Tab')
  }
  const outline = await button.evaluate((element) => getComputedStyle(element).outlineStyle)
  assert.notEqual(outline, 'none', 'focus is not visible')
  await page.keyboard.press('Enter')

  const job = await page.waitForFunction(
    (known) =>
      [...document.querySelectorAll('[data-testid=jobs] tr[data-job]')].find(
        ({ dataset }) => !known.includes(dataset.job) && ['succeeded', 'failed', 'cancelled'].includes(dataset.state),
      ),
    earlier,
  )
  assert.equal(await job.evaluate((row) => row.dataset.state), 'succeeded', await job.evaluate((row) => row.innerText))
  assert.ok(await focused(), 'the button lost the focus')

  // Everything posted so far is now covered by a version, and the page says so.
  const view = await trendingView()
  assert.ok(view.coverage.batch, 'no version was published')
  const panel = page.locator(`article[aria-labelledby="view-${view.name}"]`)
  await panel.getByText('Where this comes from').click()
  await panel.getByText(new RegExp(`version ${view.coverage.batch.version}, offsets`)).waitFor()
  await page.screenshot({ path: shot('desktop-light'), fullPage: true })
  assert.deepEqual(wrong, [])
  await close()
})

test('a phone needs no sideways scrolling', async () => {
  const view = await trendingView()
  for (const colorScheme of ['dark', 'light']) {
    const { page, wrong, close } = await open({ viewport: PHONE, colorScheme, reducedMotion: 'reduce', hasTouch: true })
    await live(page)
    await leads(page, view, '#rising')
    await page.locator('[data-testid=jobs]').waitFor()
    assert.equal(await scrollsSideways(page), false)
    await page.screenshot({ path: shot(`phone-${colorScheme}`), fullPage: true })
    await openDisclosures(page)
    assert.equal(await scrollsSideways(page), false)
    assert.deepEqual(wrong, [])
    await close()
  }
})

test('the theme that was chosen is kept', async () => {
  const { page, wrong, close } = await open({ viewport: DESKTOP, colorScheme: 'light' })
  const ground = () => page.evaluate(() => getComputedStyle(document.body).backgroundColor)
  await live(page)
  const light = await ground()
  await page.getByRole('button', { name: 'Dark theme' }).click()
  const dark = await ground()
  assert.notEqual(dark, light)
  await page.reload()
  await page.getByRole('button', { name: 'Light theme' }).waitFor()
  assert.equal(await ground(), dark)
  assert.deepEqual(wrong, [])
  await close()
})

test('the page outlives its server', async () => {
  const { page, close } = await open({ viewport: DESKTOP })
  await live(page)
  await server.stop()
  await page.locator('[data-testid=connection]', { hasText: 'reconnecting' }).waitFor()
  await page.getByRole('alert').filter({ hasText: 'the server can’t be reached' }).waitFor()
  assert.equal(await page.getByRole('alert').count(), 1)
  await page.screenshot({ path: shot('reconnecting') })
  server = start(project, new URL(url).host)
  assert.equal(await server.url, url)
  await live(page)
  await page.getByRole('alert').first().waitFor({ state: 'detached' })
  await close()
})
