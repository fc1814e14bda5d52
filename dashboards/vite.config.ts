import { svelte } from '@sveltejs/vite-plugin-svelte'
import { defineConfig } from 'vite'

// `npm run dev` expects a server on its default address.
export default defineConfig({
  plugins: [svelte({ configFile: false })],
  build: {
    outDir: 'dist',
    cssTarget: ['chrome123', 'firefox120', 'safari17.5'], // the first with `light-dark()`
    // The server's content security policy allows files of its own only: nothing may be inlined.
    assetsInlineLimit: 0,
    license: { fileName: 'assets/licenses.txt' },
    modulePreload: { polyfill: false },
  },
  server: {
    proxy: Object.fromEntries(
      // With the name that the page has: the server lets pages of other origins change nothing.
      ['/v1', '/docs', '/metrics', '/openapi.json'].map((path) => [
        path,
        { target: 'http://127.0.0.1:8080', changeOrigin: false },
      ]),
    ),
  },
})
