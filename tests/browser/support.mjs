// What the tests of the dashboard have in common: the real binary, a real browser, and what a person does with them.
//
//   ANABRANCH_BIN       the binary to start
//   ANABRANCH_EXAMPLES  the folder that holds `social` and `clicks`; by default `examples` of this repository
//   ANABRANCH_SHOTS     where screenshots go; by default a new temporary folder
//   ANABRANCH_CHROMIUM  the browser; by default /usr/bin/chromium

import assert from 'node:assert/strict'
import { spawn } from 'node:child_process'
import { mkdirSync, mkdtempSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { chromium } from 'playwright-core'

const PATIENCE_MS = 30_000
export const DESKTOP = { width: 1440, height: 1000 }
export const TABLET = { width: 768, height: 1024 }
export const PHONE = { width: 390, height: 844 }

const binary = process.env.ANABRANCH_BIN
const shots = process.env.ANABRANCH_SHOTS ?? mkdtempSync(join(tmpdir(), 'anabranch-shots-'))

/** A new temporary folder for projects. */
export const workFolder = () => mkdtempSync(join(tmpdir(), 'anabranch-browser-'))

/** Where a screenshot goes. */
export function shot(name) {
  mkdirSync(shots, { recursive: true })
  return join(shots, `${name}.png`)
}

/** Starts the binary and waits for the address that it prints. */
export function start(project, listen, environment = {}) {
  assert.ok(binary, 'ANABRANCH_BIN names no binary')
  const options = { stdio: ['ignore', 'pipe', 'pipe'], env: { ...process.env, ...environment } }
  const child = spawn(binary, ['up', project, '--listen', listen], options)
  let printed = ''
  const ended = new Promise((resolve) => child.once('close', resolve))
  const url = new Promise((resolve, reject) => {
    const fail = (why) => reject(new Error(`${why}; the server printed:\n${printed}`))
    const timer = setTimeout(() => fail('no address within the time allowed'), PATIENCE_MS)
    const read = (chunk) => {
      printed += chunk
      const address = /http:\/\/127\.0\.0\.1:\d+/.exec(printed)?.[0]
      if (!address) return
      clearTimeout(timer)
      resolve(address)
    }
    child.stdout.on('data', read)
    child.stderr.on('data', read)
    child.once('error', (error) => fail(error.message))
    child.once('close', (code) => fail(`the server ended with ${code}`))
  })
  return {
    url,
    printed: () => printed,
    stop: () => {
      child.kill('SIGTERM')
      return ended
    },
  }
}

export const launch = () =>
  chromium.launch({
    executablePath: process.env.ANABRANCH_CHROMIUM ?? '/usr/bin/chromium',
    args: [
      '--no-sandbox',
      '--disable-gpu',
      '--disable-quic',
      '--no-first-run',
      '--disable-background-networking',
      '--disable-component-update',
      '--disable-sync',
    ],
  })

/** A page, whatever goes wrong on it, and by view the range of windows that it has asked for last. */
export async function open(browser, url, options) {
  const context = await browser.newContext(options)
  const page = await context.newPage()
  page.setDefaultTimeout(PATIENCE_MS)
  const wrong = []
  const ranges = new Map()
  page.on('request', (request) => {
    const { pathname, searchParams } = new URL(request.url())
    const [, view] = /^\/v1\/views\/([^/]+)\/rows$/.exec(pathname) ?? []
    if (view && searchParams.has('from') && searchParams.get('mode') !== 'batch') ranges.set(decodeURIComponent(view), searchParams)
  })
  page.on('pageerror', (error) => wrong.push(`exception: ${error.message}`))
  page.on('console', (message) => {
    if (message.type() === 'error' || message.type() === 'warning') wrong.push(`${message.type()}: ${message.text()}`)
  })
  await page.exposeFunction('reportViolation', (text) => wrong.push(`policy: ${text}`))
  await page.addInitScript(() =>
    document.addEventListener('securitypolicyviolation', (event) =>
      window.reportViolation(`${event.violatedDirective} ${event.blockedURI} ${event.sourceFile}:${event.lineNumber}`),
    ),
  )
  const response = await page.goto(url)
  return { page, response, wrong, ranges, close: () => context.close() }
}

export const live = (page) => page.locator('[data-testid=connection]', { hasText: /^\s*live\s*$/ }).waitFor()

/** JSON in which an integer that a number can't hold is a bigint. */
function parseJson(text) {
  const isLong = (token) => /^-?\d{16,}$/.test(token) && !Number.isSafeInteger(Number(token))
  const marked = text.replace(/"(?:[^"\\]|\\.)*"|-?\d[\d.eE+-]*/g, (token) => (isLong(token) ? `"\\u0001${token}"` : token))
  return JSON.parse(marked, (_, value) => (typeof value === 'string' && /^\u0001-?\d+$/.test(value) ? BigInt(value.slice(1)) : value))
}

export async function get(url) {
  const response = await fetch(url)
  const text = await response.text()
  assert.ok(response.ok, `GET ${url}: ${response.status} ${text}`)
  return parseJson(text)
}

/** Asks until the answer is as wanted. */
export async function until(ask, isWanted, patience = PATIENCE_MS) {
  const began = Date.now()
  for (;;) {
    const answer = await ask()
    if (isWanted(answer)) return answer
    assert.ok(Date.now() - began < patience, `in vain: ${JSON.stringify(answer, (_, cell) => (typeof cell === 'bigint' ? String(cell) : cell)).slice(0, 2000)}`)
    await new Promise((resolve) => setTimeout(resolve, 20))
  }
}

/** Waits until all views of a topic cover what these receipts acknowledge. */
export const covers = (url, topic, receipts) =>
  until(
    () => get(`${url}/v1/views`),
    ({ views }) =>
      views
        .filter((view) => view.topic === topic)
        .every(({ coverage: { batch, speed } }) => {
          const next = (partition) => Math.max(batch?.offsets[topic]?.[partition]?.[1] ?? 0, speed?.offsets[topic]?.[partition]?.[1] ?? 0)
          return receipts.every(({ offsets }) => Object.entries(offsets).every(([partition, [, end]]) => next(partition) >= end))
        }),
  )

/** Runs batch, and waits until answers rest on the versions that it publishes. */
export async function runBatch(url, views) {
  const response = await fetch(`${url}/v1/jobs`, {
    method: 'POST',
    headers: { 'content-type': 'application/json' },
    body: JSON.stringify({ kind: 'batch', views }),
  })
  assert.equal(response.status, 202)
  const { id } = await response.json()
  const { versions, ...job } = await until(() => get(`${url}/v1/jobs/${id}`), ({ ended }) => ended !== null, 4 * PATIENCE_MS)
  assert.equal(job.state, 'succeeded', job.error)
  const restsOn = (view) => async () => (await get(`${url}/v1/views/${view}/rows?limit=1`)).sources.batch?.version
  for (const view of views) await until(restsOn(view), (version) => version === versions[view])
}

/** Pseudo-random choices, which follow from the seed. */
export function chanceOf(seed) {
  let state = seed
  const random = () => (state = (state * 48271) % 2147483647) / 2147483647
  const below = (most) => Math.floor(random() * most)
  return { random, below, pick: (all) => all[below(all.length)] }
}

/** Waits until a view covers the log to its end. */
export async function settled(url, view) {
  while ((await get(`${url}/v1/views/${view}`)).lag > 0);
}

export async function post(url, topic, records) {
  const lines = records.map((record) => (typeof record === 'string' ? record : JSON.stringify(record)))
  const response = await fetch(`${url}/v1/topics/${topic}/events`, {
    method: 'POST',
    headers: { 'content-type': 'application/x-ndjson' },
    body: lines.map((line) => `${line}\n`).join(''),
  })
  assert.ok(response.ok, `POST: ${response.status} ${await response.clone().text()}`)
  return response.json()
}

export const scrollsSideways = (page) =>
  page.evaluate(() => document.documentElement.scrollWidth > document.documentElement.clientWidth)

export const openDisclosures = (page) =>
  page.evaluate(() => {
    for (const details of document.querySelectorAll('details')) details.open = true
  })
