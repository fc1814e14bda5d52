// The colour scheme: the system's, or the one that was chosen.
import { storedTheme, storeTheme, type Theme } from './theme'

const query = matchMedia('(prefers-color-scheme: dark)')

class Scheme {
  private theme = $state<Theme>(storedTheme())
  private systemDark = $state(query.matches)
  readonly dark = $derived(this.theme === 'system' ? this.systemDark : this.theme === 'dark')

  constructor() {
    query.addEventListener('change', () => (this.systemDark = query.matches))
  }

  toggle(): void {
    const next = this.dark ? 'light' : 'dark'
    storeTheme(next)
    this.theme = next
  }
}

export const scheme = new Scheme()
