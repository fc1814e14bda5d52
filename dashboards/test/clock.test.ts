import { expect, it } from 'vitest'
import { ServerClock } from '../src/lib/clock'

const HOUR = 3_600_000

it('a browser that is an hour off reads the server’s clock', () => {
  const clock = new ServerClock()
  clock.learn(1_000_000, 1_000_000 - HOUR - 20, 1_000_000 - HOUR + 20)
  expect(clock.at(1_000_000 - HOUR + 500)).toBe(1_000_500)
})

it('the quickest answer says best what time it is', () => {
  const clock = new ServerClock()
  clock.learn(10_000, 9_990, 10_010)
  clock.learn(20_000, 19_000, 20_200) // on its way for 1.2 s, and no contradiction
  expect(clock.at(20_000)).toBe(20_000)
})

it('a clock that was set is believed at once', () => {
  const clock = new ServerClock()
  clock.learn(10_000, 9_990, 10_010)
  clock.learn(20_000 + HOUR, 19_000, 20_200)
  expect(Math.abs(clock.at(20_000) - 20_000 - HOUR)).toBeLessThan(700)
})
