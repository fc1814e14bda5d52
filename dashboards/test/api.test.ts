import { describe, expect, it } from 'vitest'
import { problemText, streamPath } from '../src/lib/api'

describe('a refusal', () => {
  const answer = (body: string) => problemText(new Response(body, { status: 404, statusText: 'Not Found' }))
  it('is told in the words of its detail', async () =>
    expect(await answer('{"title":"unknown view","status":404,"detail":"no view named `x`"}')).toBe('no view named `x`'))
  it('falls back to its title', async () => expect(await answer('{"title":"unknown view"}')).toBe('unknown view'))
  it('falls back to its status', async () => expect(await answer('<html>')).toBe('the server answered 404 Not Found'))
})

it('view names are escaped in paths', () => expect(streamPath(['a', 'b/c'])).toBe('/v1/stream?views=a,b%2Fc'))
