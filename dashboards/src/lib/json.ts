// JSON without loss: an integer that a number can't hold becomes a bigint. The server writes doubles with a point or an
// exponent, so a token of digits alone is a BIGINT.
import { parse } from 'lossless-json'

/** A token that may be such an integer. It may also stand in a text: then the slower way is taken for nothing. */
const LONG = /[:,[]-?\d{16,}[,\]}]/

function exact(token: string): number | bigint {
  const number = Number(token)
  return Number.isSafeInteger(number) || !/^-?\d+$/.test(token) ? number : BigInt(token)
}

export function parseJson(text: string): unknown {
  return LONG.test(text) ? parse(text, undefined, exact) : JSON.parse(text)
}
