// The shared worker that all tabs of a browser have in common.
import { Hub } from './hub'

const hub = new Hub()

addEventListener('connect', (event) => {
  const port = (event as MessageEvent).ports[0]
  if (port) hub.join(port)
})
