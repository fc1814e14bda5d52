// The server's clock, as its answers tell it: a browser's may be an hour off.

/** How far two clocks drift apart, at most. */
const DRIFT = 1e-4

/** Times are in milliseconds since 1970: `now`, `sent` and `received` by the browser's clock, `time` by the server's. */
export class ServerClock {
  private offset = 0
  private doubt = Infinity
  private learnt = 0

  /**
   * Learns from an answer that says `time`, which was so at some moment between `sent` and `received`. The quickest answer
   * says it best, unless a slower one contradicts it: then one of the clocks was set.
   */
  learn(time: number, sent: number, received: number): void {
    const doubt = Math.abs(received - sent) / 2
    const offset = time - (sent + received) / 2
    const known = this.doubt + Math.abs(received - this.learnt) * DRIFT
    if (doubt > known && Math.abs(offset - this.offset) <= doubt + known) return
    this.offset = offset
    this.doubt = doubt
    this.learnt = received
  }

  at(now: number): number {
    return now + this.offset
  }
}
