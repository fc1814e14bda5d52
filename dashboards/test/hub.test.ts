import { afterEach, beforeEach, expect, it, vi } from 'vitest'
import { Hub, type FromHub, type Port } from '../src/lib/hub'
import { view } from './view'

class FakeSource {
  static CLOSED = 2
  static all: FakeSource[] = []
  readyState = 0
  onopen: (() => void) | undefined
  onerror: (() => void) | undefined
  private readonly listeners = new Map<string, (event: { data: string }) => void>()
  constructor(readonly url: string) {
    FakeSource.all.push(this)
  }
  addEventListener = (name: string, listener: (event: { data: string }) => void) => this.listeners.set(name, listener)
  send = (name: string, data: unknown) => this.listeners.get(name)?.({ data: JSON.stringify(data) })
  close = () => (this.readyState = FakeSource.CLOSED)
}

const openSources = () => FakeSource.all.filter(({ readyState }) => readyState !== FakeSource.CLOSED)

let asked = 0
beforeEach(() => {
  vi.useFakeTimers()
  FakeSource.all = []
  asked = 0
  vi.stubGlobal('EventSource', FakeSource)
  vi.stubGlobal('fetch', async () => {
    asked += 1
    return new Response(JSON.stringify({ time: new Date().toISOString(), views: [view()] }))
  })
})
afterEach(() => {
  vi.useRealTimers()
  vi.unstubAllGlobals()
})

function tab(hub: Hub) {
  const heard: FromHub[] = []
  const port: Port = { postMessage: (message) => heard.push(message), onmessage: null }
  hub.join(port)
  const say = (data: 'visible' | 'hidden') => port.onmessage?.({ data } as MessageEvent<'visible'>)
  return { heard, say, kinds: () => new Set(heard.map(({ kind }) => kind)) }
}

const update = { view: view().name, rows: [{ hashtag: '#a', mentions: 1 }], removed: [], reset: true, window: null }

it('twelve tabs have one stream and one list of views a second', async () => {
  const hub = new Hub()
  const tabs = Array.from({ length: 12 }, () => tab(hub))
  tabs.forEach(({ say }) => say('visible'))
  await vi.advanceTimersByTimeAsync(4500)
  expect(openSources()).toHaveLength(1)
  expect(asked).toBe(5)
  FakeSource.all[0]!.send('update', update)
  await vi.advanceTimersByTimeAsync(300)
  for (const { kinds } of tabs) expect(kinds()).toContain('updates')
})

it('the stream is closed when all tabs are hidden, and what they missed is told when one is visible again', async () => {
  const hub = new Hub()
  const [one, other] = [tab(hub), tab(hub)]
  one.say('visible')
  other.say('visible')
  await vi.advanceTimersByTimeAsync(100)
  one.say('hidden')
  expect(openSources()).toHaveLength(1)
  FakeSource.all[0]!.send('update', update)
  other.say('hidden')
  expect(openSources()).toHaveLength(0)
  const before = asked
  await vi.advanceTimersByTimeAsync(60_000)
  expect(asked).toBe(before)
  one.heard.length = 0
  one.say('visible')
  const live = one.heard.find((message) => message.kind === 'live')
  expect([...live!.views.get(view().name)!.rows.values()]).toEqual(update.rows)
  await vi.advanceTimersByTimeAsync(100)
  expect(openSources()).toHaveLength(1)
})

it('a tab that vanishes without a word is forgotten', async () => {
  tab(new Hub()).say('visible')
  await vi.advanceTimersByTimeAsync(100)
  expect(openSources()).toHaveLength(1)
  for (let at = 0; at < 4; at += 1) {
    FakeSource.all.at(-1)!.send('heartbeat', { time: new Date().toISOString() })
    await vi.advanceTimersByTimeAsync(10_000)
  }
  expect(openSources()).toHaveLength(0)
})

it('a stream without a heartbeat is opened anew, although nothing was cut', async () => {
  const { say, heard } = tab(new Hub())
  say('visible')
  await vi.advanceTimersByTimeAsync(100)
  FakeSource.all[0]!.onopen?.()
  await vi.advanceTimersByTimeAsync(14_000)
  expect(FakeSource.all).toHaveLength(2)
  expect(openSources()).toHaveLength(1)
  expect(heard).toContainEqual({ kind: 'stream', state: 'lost' })
})

it('a stream that was refused is tried again, ever more seldom', async () => {
  const { say } = tab(new Hub())
  const signs = setInterval(() => say('visible'), 5000)
  say('visible')
  for (let at = 0; at < 200; at += 1) {
    await vi.advanceTimersByTimeAsync(100)
    for (const source of openSources()) {
      source.close()
      source.onerror?.()
    }
  }
  clearInterval(signs)
  expect(FakeSource.all.length).toBeGreaterThan(3)
  expect(FakeSource.all.length).toBeLessThan(8)
})
