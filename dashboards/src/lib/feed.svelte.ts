// What a panel asks for by itself: again whenever the view has moved on, and never while the whole page is stale.
import { untrack } from 'svelte'
import { errorText, poll, type ViewDetail } from './api'
import { connection } from './connection.svelte'

const PAUSE_MS = 2000
/** A panel whose next answer takes longer than this says of when it is. */
const LATE_MS = 10_000

/** What answers about a view follow from. Where it has stopped, the log's end says how much they lack. */
export const stateOf = ({ coverage, watermark, definition, stopped, log_end }: ViewDetail): string =>
  JSON.stringify([coverage, watermark, definition, stopped, stopped !== null && log_end])

export class Feed<T> {
  answer = $state.raw<T>()
  /** The moment, by the server's clock, at which `answer` was asked for. */
  private asked = $state(0)
  private waiting = $state<number>()
  private failed = $state<string>()

  /** Why the panel isn't of now. Where nothing on the page is, one banner says so for all. */
  readonly problem = $derived.by<string | undefined>(() => {
    if (connection.stale) return undefined
    if (this.failed !== undefined) return this.failed
    const isLate = this.waiting !== undefined && connection.now - this.waiting > LATE_MS
    return isLate ? 'the server takes long to answer' : undefined
  })
  /** The moment that the panel is of, where it isn't now. */
  readonly asOf = $derived(this.problem !== undefined && this.answer !== undefined ? this.asked : undefined)

  /**
   * Runs `task` at once and whenever `at` says something else than when it last succeeded. An `at` of `undefined` waits; a
   * task that gives `undefined` has no answer yet and is run again. Another `question` is asked at once.
   */
  constructor(at: () => string | undefined, task: () => Promise<T | undefined>, question: () => unknown = () => undefined) {
    // Views are new objects with each list of them; only another value is another question.
    const asked = $derived(question())
    $effect(() => {
      void asked
      return untrack(() => this.follow(at, task))
    })
  }

  private follow(at: () => string | undefined, task: () => Promise<T | undefined>): () => void {
    let pause = PAUSE_MS
    let last: string | undefined
    let isOver = false
    const stop = poll(
      () => pause,
      async () => {
        const now = at()
        if (now === undefined || now === last || connection.stale) return
        const began = performance.now()
        const asked = connection.now
        this.waiting = asked
        const { answer, failed } = await task().then(
          (answer) => ({ answer, failed: undefined }),
          (error: unknown) => ({ answer: undefined, failed: errorText(error) }),
        )
        if (isOver) return
        if (answer !== undefined) {
          this.answer = answer
          this.asked = asked
          last = now
        }
        this.failed = failed
        this.waiting = undefined
        // Where an answer takes long, ask more seldom: the page must not be the server's main work.
        pause = Math.max(PAUSE_MS, 5 * (performance.now() - began))
      },
    )
    return () => {
      isOver = true
      stop()
    }
  }
}
