// What the page knows and how fresh it is: components read figures, and whether they are stale, from here. The hub behind it
// is the same for all tabs.
import { SvelteMap } from 'svelte/reactivity'
import type { OutputDetail, ViewDetail } from './api'
import { ServerClock } from './clock'
import { Hub, SIGN_MS, type FromHub, type StreamState, type ToHub } from './hub'
import { applyUpdate, isStreamed, type LiveView } from './live'
import { growth, positions, type Sample } from './pulse'

export const SAMPLES = 60

/** Figures that are older than this are not shown as those of now. */
const STALE_MS = 10_000
const TICK_MS = 1000
/** A hub says something at least as often as a request of its may take. One that doesn't has come to an end. */
const SILENT_MS = 15_000

export type State = 'connecting' | 'live' | 'reconnecting' | 'stale' | 'no stream'

class Connection {
  views = $state.raw<ViewDetail[]>()
  outputs = $state.raw<OutputDetail[]>([])
  readonly live = new SvelteMap<string, LiveView>()
  /** Events between one list of views and the next. */
  samples = $state.raw<Sample[]>([])
  /** Why there is no newer list of views. */
  problem = $state<string>()

  private readonly clock = new ServerClock()
  private stream = $state<StreamState>('opening')
  private serverNow = $state(Date.now())
  private listed = $state<number>()
  private beat = $state<number>()
  private reached: Map<string, number> | undefined

  private readonly streamed = $derived((this.views ?? []).some(isStreamed))
  /** The moment, by the server's clock, that all figures here are not older than; none before there are any. */
  private readonly asOf = $derived(
    this.listed !== undefined && this.streamed && this.beat !== undefined ? Math.min(this.listed, this.beat) : this.listed,
  )

  /** How long ago, in milliseconds, figures were those of now. */
  readonly age = $derived(this.asOf === undefined ? 0 : Math.max(0, this.serverNow - this.asOf))
  readonly stale = $derived(this.age > STALE_MS || this.problem !== undefined)
  /** The moment, by the server's clock, that figures are to be read at: now, unless they are stale. */
  readonly now = $derived(this.stale ? (this.asOf ?? this.serverNow) : this.serverNow)
  readonly state = $derived.by<State>(() => {
    if (this.stale) return this.problem === undefined && this.asOf !== undefined ? 'stale' : 'reconnecting'
    if (!this.views) return 'connecting'
    if (!this.streamed) return 'no stream'
    return ({ none: 'connecting', opening: 'connecting', open: 'live', lost: 'reconnecting' } as const)[this.stream]
  })

  /** Begins to talk to the server. Returns the function that ends it. */
  start(): () => void {
    const port = connectHub((message) => this.take(message))
    const say = () => port.postMessage(document.hidden ? 'hidden' : 'visible')
    const leave = () => port.postMessage('hidden')
    const tick = () => (this.serverNow = this.clock.at(Date.now()))
    const look = () => {
      tick()
      say()
    }
    look()
    const timers = [setInterval(tick, TICK_MS), setInterval(say, SIGN_MS)]
    document.addEventListener('visibilitychange', look)
    addEventListener('pageshow', look)
    addEventListener('pagehide', leave)
    return () => {
      leave()
      timers.forEach(clearInterval)
      document.removeEventListener('visibilitychange', look)
      removeEventListener('pageshow', look)
      removeEventListener('pagehide', leave)
    }
  }

  private take(message: FromHub): void {
    switch (message.kind) {
      case 'views':
        this.clock.learn(Date.parse(message.time), message.sent, message.received)
        this.sample(message.views, message.received)
        this.views = message.views
        this.outputs = message.outputs
        this.listed = Date.parse(message.time)
        this.problem = undefined
        break
      case 'problem':
        this.problem = message.text
        break
      case 'beat':
        this.beat = Date.parse(message.time)
        break
      case 'stream':
        this.stream = message.state
        break
      case 'live':
        for (const [name, view] of message.views) this.live.set(name, view)
        break
      case 'updates':
        for (const update of message.updates) {
          const view = this.views?.find(({ name }) => name === update.view)
          if (view) this.live.set(view.name, applyUpdate(view, this.live.get(view.name), update))
        }
    }
    this.serverNow = this.clock.at(Date.now())
  }

  private sample(views: ViewDetail[], at: number): void {
    const next = positions(views)
    this.samples = [...this.samples, { at, events: this.reached ? growth(this.reached, next) : 0 }].slice(-SAMPLES)
    this.reached = next
  }
}

interface Line {
  postMessage(message: ToHub): void
}

/** The way to the hub: over a shared worker, else, where there is none or it says nothing, to one in this page. */
function connectHub(take: (message: FromHub) => void): Line {
  let port: MessagePort | undefined
  let last: ToHub = 'hidden'
  let heard = performance.now()
  let isOwn = false
  const use = (next: MessagePort) => {
    port = next
    port.onmessage = ({ data }: MessageEvent<FromHub>) => {
      heard = performance.now()
      take(data)
    }
  }
  const useOwn = () => {
    port?.postMessage('hidden' satisfies ToHub)
    isOwn = true
    const { port1, port2 } = new MessageChannel()
    new Hub().join(port2)
    use(port1)
    port1.postMessage(last)
  }
  try {
    const worker = new SharedWorker(new URL('./hub.worker.ts', import.meta.url), { type: 'module', name: 'anabranch' })
    worker.onerror = () => {
      if (!isOwn) useOwn()
    }
    use(worker.port)
  } catch {
    useOwn()
  }
  return {
    postMessage(message) {
      if (last === 'hidden') heard = performance.now()
      last = message
      if (!isOwn && message === 'visible' && performance.now() - heard > SILENT_MS) useOwn()
      else port?.postMessage(message)
    },
  }
}

export const connection = new Connection()
