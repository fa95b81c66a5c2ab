// A strip over the whole window: a dialog that takes it from its node and gives it back.

import { button, element } from './dom.js'
import { words } from './texts.js'

/** @typedef {import('./strip.js').FilmStrip} FilmStrip */

/**
 * Shows the strip over the window, or where it is shown already, puts it back.
 * @param {FilmStrip} strip
 * @param {() => void} [closed]
 */
export function enlarge(strip, closed) {
  const open = strip.inner.closest('dialog')
  if (open) {
    open.close()
    return
  }
  const dialog = element('dialog', 'strip-dialog', strip.inner)
  dialog.setAttribute('aria-label', words('strip'))
  dialog.onclose = () => {
    strip.root.append(strip.inner)
    dialog.remove()
    closed?.()
  }
  // The page's shortcuts are not meant for what stands before it.
  dialog.onkeydown = (event) => event.stopPropagation()
  document.body.append(dialog)
  dialog.showModal()
  strip.timeline.draw()
}

/** @param {FilmStrip} strip @returns {HTMLButtonElement} for a strip that is never in a node */
export function closeButton(strip) {
  const made = button('✕', words('close'), 'close')
  made.onclick = () => strip.inner.closest('dialog')?.close()
  return made
}
