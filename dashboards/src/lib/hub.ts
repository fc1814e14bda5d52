// What talks to the server for all tabs of a browser: it asks for the views once a second and holds one event stream, for as
// long as at least one tab is visible. It lives in a shared worker, or in the page where there is none.
import { errorText, listViews, streamPath, type Heartbeat, type Update, type Views } from './api'
import { parseJson } from './json'
import { applyUpdate, isStreamed, type LiveView } from './live'

/** `none` where no view is streamed; `lost` while a stream that broke is opened again. */
export type StreamState = 'none' | 'opening' | 'open' | 'lost'

/** Times by the browser's clock are in milliseconds since 1970; `time` is the server's. */
export type FromHub =
  | ({ kind: 'views'; sent: number; received: number } & Views)
  | { kind: 'problem'; text: string }
  | { kind: 'stream'; state: StreamState }
  | { kind: 'beat'; time: string }
  | { kind: 'live'; views: Map<string, LiveView> }
  | { kind: 'updates'; updates: Update[] }

/** A visible tab says so again every `SIGN_MS`; one that vanishes without a word is forgotten. */
export type ToHub = 'visible' | 'hidden'

export interface Port {
  postMessage(message: FromHub): void
  onmessage: ((event: MessageEvent<ToHub>) => void) | null
}

export const SIGN_MS = 5000
export const POLL_MS = 1000
const FORGET_MS = 6 * SIGN_MS
/** A stream has a heartbeat every 5 s. One that is silent for longer than two is opened anew. */
const SILENT_MS = 12_000
const FLUSH_MS = 250 // rows move at most four times a second, so that eyes can follow
const FIRST_RETRY_MS = 1000
const LAST_RETRY_MS = 15_000

export class Hub {
  /** The visible tabs, and when each was heard of last. */
  private readonly visible = new Map<Port, number>()
  private readonly live = new Map<string, LiveView>()
  private views: Extract<FromHub, { kind: 'views' }> | undefined
  private beat: Extract<FromHub, { kind: 'beat' }> | undefined
  private problem: string | undefined
  private pending: Update[] = []
  private timers: ReturnType<typeof setTimeout>[] = []
  private stream = new Stream({
    state: (state) => this.tell({ kind: 'stream', state }),
    beat: (time) => this.tell((this.beat = { kind: 'beat', time })),
    update: (update) => this.pending.push(update),
  })

  join(port: Port): void {
    port.onmessage = ({ data }) => {
      if (data === 'hidden') return this.leave(port)
      const isNew = !this.visible.has(port)
      this.visible.set(port, performance.now())
      if (isNew) this.catchUp(port)
      if (this.timers.length === 0) this.start()
    }
  }

  private leave(port: Port): void {
    this.visible.delete(port)
    if (this.visible.size === 0) this.stop()
  }

  /** A tab that becomes visible has missed what happened meanwhile. */
  private catchUp(port: Port): void {
    this.flush()
    if (this.views) port.postMessage(this.views)
    if (this.beat) port.postMessage(this.beat)
    port.postMessage({ kind: 'live', views: this.live })
    port.postMessage({ kind: 'stream', state: this.stream.state })
    if (this.problem) port.postMessage({ kind: 'problem', text: this.problem })
  }

  private start(): void {
    let asking = false
    const ask = async () => {
      if (asking) return
      asking = true
      await this.ask()
      asking = false
    }
    void ask()
    this.timers = [
      setInterval(ask, POLL_MS),
      setInterval(() => this.flush(), FLUSH_MS),
      setInterval(() => this.watch(), POLL_MS),
    ]
  }

  private stop(): void {
    for (const timer of this.timers) clearInterval(timer)
    this.timers = []
    this.flush()
    this.stream.follow([])
  }

  private async ask(): Promise<void> {
    const sent = Date.now()
    try {
      const listed = await listViews()
      this.views = { kind: 'views', ...listed, sent, received: Date.now() }
      this.problem = undefined
      this.tell(this.views)
      // Everybody may have gone meanwhile.
      if (this.timers.length > 0) this.stream.follow(listed.views.filter(isStreamed).map(({ name }) => name))
    } catch (error) {
      this.problem = errorText(error)
      this.tell({ kind: 'problem', text: this.problem })
    }
  }

  private watch(): void {
    const now = performance.now()
    for (const [port, heard] of this.visible) if (now - heard > FORGET_MS) this.leave(port)
    this.stream.watch(now)
  }

  private flush(): void {
    const updates = this.pending.flatMap((update) => {
      const view = this.views?.views.find(({ name }) => name === update.view)
      if (!view) return []
      this.live.set(view.name, applyUpdate(view, this.live.get(view.name), update))
      return [update]
    })
    this.pending = []
    if (updates.length > 0) this.tell({ kind: 'updates', updates })
  }

  private tell(message: FromHub): void {
    for (const port of this.visible.keys()) port.postMessage(message)
  }
}

interface Listener {
  state: (state: StreamState) => void
  beat: (time: string) => void
  update: (update: Update) => void
}

/**
 * One connection for many views. The browser reconnects by itself after a cut; where it gives up (an error status), or
 * where nothing comes although nothing was cut, this opens another.
 */
class Stream {
  state: StreamState = 'none'
  private source: EventSource | undefined
  private path: string | undefined
  private heard = 0
  private wait = FIRST_RETRY_MS
  private retry: ReturnType<typeof setTimeout> | undefined

  constructor(private readonly on: Listener) {}

  /** Follows these views, and no others any more. */
  follow(views: string[]): void {
    const path = views.length > 0 ? streamPath(views) : undefined
    if (path === this.path) return
    this.path = path
    this.wait = FIRST_RETRY_MS
    this.open()
  }

  watch(now: number): void {
    if (this.source && now - this.heard > SILENT_MS) this.open('lost')
  }

  private open(state: StreamState = 'opening'): void {
    clearTimeout(this.retry)
    this.source?.close()
    this.source = undefined
    if (this.path === undefined) return this.say('none')
    this.say(state)
    this.heard = performance.now()
    const source = new EventSource(this.path)
    this.source = source
    source.onopen = () => {
      this.wait = FIRST_RETRY_MS
      this.heard = performance.now()
      this.say('open')
    }
    source.onerror = () => {
      this.say('lost')
      if (source.readyState !== EventSource.CLOSED) return
      this.source = undefined
      this.retry = setTimeout(() => this.open('lost'), this.wait)
      this.wait = Math.min(this.wait * 2, LAST_RETRY_MS)
    }
    const listen = <T>(name: string, then: (data: T) => void) =>
      source.addEventListener(name, (event: MessageEvent<string>) => {
        this.heard = performance.now()
        then(parseJson(event.data) as T)
      })
    listen<Update>('update', this.on.update)
    listen<Heartbeat>('heartbeat', ({ time }) => this.on.beat(time))
  }

  private say(state: StreamState): void {
    if (state === this.state) return
    this.state = state
    this.on.state(state)
  }
}
