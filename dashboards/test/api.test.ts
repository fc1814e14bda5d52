import { afterEach, describe, expect, it, vi } from 'vitest'
import { listViews, problemText, rows, streamPath } from '../src/lib/api'
import { view } from './view'

afterEach(() => {
  vi.unstubAllGlobals()
  vi.restoreAllMocks()
})

describe('a refusal', () => {
  const answer = (body: string) => problemText({ status: 404, statusText: 'Not Found' }, body)
  it('is told in the words of its detail', () =>
    expect(answer('{"title":"unknown view","status":404,"detail":"no view named `x`"}')).toBe('no view named `x`'))
  it('falls back to its title', () => expect(answer('{"title":"unknown view"}')).toBe('unknown view'))
  it('falls back to its status', () => expect(answer('<html>')).toBe('the server answered 404 Not Found'))
})

it('views that keep rows are apart from outputs', async () => {
  const time = '2017-08-27T00:05:00Z'
  const output = { kind: 'output', name: 'big' }
  vi.stubGlobal('fetch', async () => new Response(JSON.stringify({ time, views: [view(), output] })))
  expect(await listViews()).toEqual({ time, views: [view()], outputs: [output] })
})

it('view names are escaped in paths', () => expect(streamPath(['a', 'b/c'])).toBe('/v1/stream?views=a,b%2Fc'))

describe('a request', () => {
  it('ends where the server says nothing', async () => {
    vi.spyOn(AbortSignal, 'timeout').mockReturnValue(AbortSignal.abort(new DOMException('', 'TimeoutError')))
    await expect(listViews()).rejects.toThrow('the server doesn’t answer')
    expect(AbortSignal.timeout).toHaveBeenCalledWith(8000)
  })
  it('says so where the server can’t be reached', async () => {
    vi.stubGlobal('fetch', () => Promise.reject(new TypeError('failed')))
    await expect(listViews()).rejects.toThrow('the server can’t be reached')
  })
  it('keeps every digit of a large integer', async () => {
    vi.stubGlobal('fetch', async () => new Response('{"rows":[{"n":9007199254740993,"m":5,"d":9007199254740992.0}]}'))
    expect((await rows('v', {})).rows).toEqual([{ n: 9007199254740993n, m: 5, d: 9007199254740992 }])
  })
})
