import { describe, expect, it, vi } from 'vitest'
import { listViews, problemText, streamPath } from '../src/lib/api'
import { view } from './view'

describe('a refusal', () => {
  const answer = (body: string) => problemText(new Response(body, { status: 404, statusText: 'Not Found' }))
  it('is told in the words of its detail', async () =>
    expect(await answer('{"title":"unknown view","status":404,"detail":"no view named `x`"}')).toBe('no view named `x`'))
  it('falls back to its title', async () => expect(await answer('{"title":"unknown view"}')).toBe('unknown view'))
  it('falls back to its status', async () => expect(await answer('<html>')).toBe('the server answered 404 Not Found'))
})

it('a view without rows has no panel', async () => {
  vi.stubGlobal('fetch', async () => new Response(JSON.stringify({ views: [view(), { kind: 'output', name: 'big' }] })))
  expect(await listViews()).toEqual([view()])
  vi.unstubAllGlobals()
})

it('view names are escaped in paths', () => expect(streamPath(['a', 'b/c'])).toBe('/v1/stream?views=a,b%2Fc'))
