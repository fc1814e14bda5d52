// What is stale is never shown as fresh; and tabs don't get in each other's way.

import assert from 'node:assert/strict'
import { spawn } from 'node:child_process'
import { once } from 'node:events'
import { connect, createServer } from 'node:net'
import { after, before, test } from 'node:test'
import { fileURLToPath } from 'node:url'
import { answer, ranking, serve, view } from './fake.mjs'
import { DESKTOP, launch, live, open, PHONE, scrollsSideways, shot, TABLET } from './support.mjs'

const BANNER = /All figures are as of (\d\d:\d\d:\d\d), (\d+) (s|min)/

let browser
before(async () => (browser = await launch()))
after(() => browser?.close())

/** The server as a process of its own, which can be stopped as any. */
async function startProcess() {
  const child = spawn(process.execPath, [fileURLToPath(new URL('fake.mjs', import.meta.url))], { stdio: ['ignore', 'pipe', 'inherit'] })
  const [line] = await once(child.stdout, 'data')
  return { url: String(line).trim(), child }
}

/** Hands on bytes until `swallow` says no; then connections stay open and nothing comes through. */
async function startProxy(target) {
  const proxy = { swallow: false }
  const sockets = new Set()
  const server = createServer((near) => {
    const far = connect(Number(new URL(target).port), '127.0.0.1')
    for (const [from, to] of [[near, far], [far, near]]) {
      sockets.add(from)
      from.on('data', (bytes) => proxy.swallow || to.write(bytes))
      from.on('close', () => proxy.swallow || to.destroy())
      from.on('error', () => {})
    }
  })
  await once(server.listen(0, '127.0.0.1'), 'listening')
  return Object.assign(proxy, {
    url: `http://127.0.0.1:${server.address().port}`,
    stop: () => {
      for (const socket of sockets) socket.destroy()
      server.close()
    },
  })
}

/** The page says once of when its figures are, dims them and calls nothing live; then it goes on by itself. */
async function goesStaleAndBack(page, quiet, resume) {
  await live(page)
  await page.locator('[data-testid=key]', { hasText: '#calm' }).waitFor()
  assert.equal(await page.getByRole('alert').count(), 0)
  quiet()
  await page.getByRole('alert').waitFor()
  await page.waitForFunction(() => / (1[2-9]|[2-9]\d) s ago/.test(document.querySelector('[role=alert]')?.textContent ?? ''))
  assert.match(await page.getByRole('alert').innerText(), BANNER)
  assert.equal(await page.getByRole('alert').count(), 1)
  assert.notEqual((await page.locator('[data-testid=connection]').innerText()).trim(), 'live')
  const faint = await page.locator('.panel > *').evaluateAll((all) => all.every((one) => Number(getComputedStyle(one).opacity) < 0.6))
  assert.ok(faint, 'a figure is not dim')
  assert.equal(await page.getByText('exact', { exact: true }).count(), 0, 'a badge says exact as if it were now')
  await resume()
  await live(page)
  await page.getByRole('alert').waitFor({ state: 'detached' })
}

test('a server that is stopped makes every figure dim, with one banner, until data flows again', async (t) => {
  const { url, child } = await startProcess()
  t.after(() => child.kill('SIGKILL'))
  const { page, close } = await open(browser, url, { viewport: DESKTOP })
  await goesStaleAndBack(
    page,
    () => child.kill('SIGSTOP'),
    async () => {
      for (const colorScheme of ['light', 'dark']) {
        await page.emulateMedia({ colorScheme })
        for (const [name, viewport] of Object.entries({ DESKTOP, TABLET, PHONE })) {
          await page.setViewportSize(viewport)
          await page.screenshot({ path: shot(`stale-${name.toLowerCase()}-${colorScheme}`), fullPage: true })
          assert.equal(await scrollsSideways(page), false)
        }
      }
      child.kill('SIGCONT')
    },
  )
  await close()
})

test('a network that swallows packets makes every figure dim, with one banner, until data flows again', async (t) => {
  const server = await serve(ranking)
  t.after(() => server.stop())
  const proxy = await startProxy(server.url)
  t.after(() => proxy.stop())
  const { page, close } = await open(browser, proxy.url, { viewport: DESKTOP })
  await goesStaleAndBack(page, () => (proxy.swallow = true), () => (proxy.swallow = false))
  await close()
})

const hide = (page, hidden) =>
  page.evaluate((hidden) => {
    Object.defineProperty(document, 'hidden', { configurable: true, get: () => hidden })
    document.dispatchEvent(new Event('visibilitychange'))
  }, hidden)

/** Waits until as many streams are open. */
const streams = async (server, count) => {
  const began = Date.now()
  while (server.streams.size !== count) {
    assert.ok(Date.now() - began < 10_000, `${server.streams.size} streams are open, not ${count}`)
    await new Promise(setImmediate)
  }
}

test('twelve tabs share one stream, which is closed when all are hidden', async (t) => {
  const server = await serve(ranking)
  t.after(() => server.stop())
  const context = await browser.newContext({ viewport: DESKTOP })
  const pages = []
  for (let at = 0; at < 12; at += 1) {
    const page = await context.newPage()
    await page.goto(server.url)
    pages.push(page)
  }
  for (const page of pages) {
    await live(page)
    await page.locator('[data-testid=key]', { hasText: '#calm' }).waitFor()
  }
  await streams(server, 1)
  for (const page of pages.slice(1)) await hide(page, true)
  await streams(server, 1)
  await hide(pages[0], true)
  await streams(server, 0)
  await hide(pages[7], false)
  await streams(server, 1)
  await live(pages[7])
  await context.close()
  await streams(server, 0)
})

test('where there is no shared worker, the page follows by itself', async (t) => {
  const server = await serve(ranking)
  t.after(() => server.stop())
  const context = await browser.newContext()
  const page = await context.newPage()
  await page.addInitScript(() => delete window.SharedWorker)
  await page.goto(server.url)
  await live(page)
  await page.locator('[data-testid=key]', { hasText: '#calm' }).waitFor()
  await context.close()
})

test('panels fill also where an answer takes longer than it is to the next list of views', async (t) => {
  const window = { window_start: '2024-01-15T10:04:00Z', window_end: '2024-01-15T10:05:00Z' }
  const rows = (_, parameters) => answer([{ hashtag: '#slow', mentions: 7 }], parameters.has('totals') ? { totals: [{ ...window, mentions: 7 }] } : {})
  const server = await serve({ views: [view({ order: [], limit: null })], rows, slow: 1500 })
  t.after(() => server.stop())
  const { page, wrong, close } = await open(browser, server.url, { viewport: DESKTOP })
  await page.locator('.read').getByText('7', { exact: true }).waitFor()
  await page.getByText('#slow').waitFor()
  assert.deepEqual(wrong, [])
  await close()
})

test('lag is by the server’s clock, also in a browser that is an hour off', async (t) => {
  const ahead = 3_600_000
  const watermark = new Date(Date.now() + ahead - 61_000).toISOString()
  const server = await serve({ ...ranking, ahead, views: [view({ watermark })] })
  t.after(() => server.stop())
  const { page, wrong, close } = await open(browser, server.url, { viewport: DESKTOP })
  await live(page)
  assert.match(await page.getByTestId('watermark-lag').innerText(), /^1 min/)
  assert.deepEqual(wrong, [])
  await close()
})

test('an event that is late for three views is one, and late events are no rejects', async (t) => {
  const views = ['a', 'b', 'c'].map((name) => view({ name, late: 1, rejected: 1 }))
  const reject = { topic: 'tweets', partition: 0, offset: 1, line: null, view: null, behind_ms: null, reason: 'no JSON', record: '{', rejected_at: '2024-01-15T10:00:00Z' }
  const late = { ...reject, view: 'a', behind_ms: 900, reason: 'late: its window was closed for good' }
  const server = await serve({ ...ranking, views, rejects: { rejects: [late, reject], total: 2, next_cursor: null } })
  t.after(() => server.stop())
  const { page, close } = await open(browser, server.url, { viewport: DESKTOP })
  await live(page)
  assert.equal(await page.getByTestId('late').innerText(), '1')
  await page.getByRole('button', { name: 'List rejects' }).click()
  const dialog = page.getByRole('dialog')
  await dialog.getByText('no JSON').waitFor()
  assert.equal(await dialog.getByText('late: its window').count(), 0)
  await dialog.getByText('Rejected records: 1').waitFor()
  await dialog.getByText('events that came too late, which are rows: 1 for a').waitFor()
  await close()
})
