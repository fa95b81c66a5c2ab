// Elements and texts that the pack's widgets share.

/**
 * @template {keyof HTMLElementTagNameMap} K
 * @param {K} tag
 * @param {string} [name] of its class, after "helios-"
 * @param {(HTMLElement | string)[]} children
 * @returns {HTMLElementTagNameMap[K]}
 */
export function element(tag, name, ...children) {
  const made = document.createElement(tag)
  if (name) made.className = `helios-${name}`
  made.append(...children)
  return made
}

/**
 * @param {string} text what it shows: words, or a sign
 * @param {string} label what it does
 * @param {string} action its name for listeners and tests
 */
export function button(text, label, action) {
  const made = element('button', 'button', text)
  made.type = 'button'
  made.title = label
  // Words that can be seen are what a screen reader says, and what one says to a computer that listens.
  if (!/\p{L}/u.test(text)) made.setAttribute('aria-label', label)
  made.dataset.action = action
  return made
}

/** @param {number} seconds @returns {string} 1:02:05 or 0:07 */
export function clock(seconds) {
  const whole = Math.round(seconds)
  const [hours, minutes] = [Math.floor(whole / 3600), Math.floor(whole / 60) % 60]
  const tail = String(whole % 60).padStart(2, '0')
  return hours ? `${hours}:${String(minutes).padStart(2, '0')}:${tail}` : `${minutes}:${tail}`
}

/** @param {number} seconds of film */
export const filmLength = (seconds) => (seconds < 100 ? `${seconds.toFixed(1)} s` : clock(seconds))

/** @param {number} bytes */
export function fileSize(bytes) {
  const units = ['B', 'KiB', 'MiB', 'GiB']
  const power = Math.min(3, Math.floor(Math.log2(Math.max(1, bytes)) / 10))
  return `${(bytes / 1024 ** power).toFixed(power ? 1 : 0)} ${units[power]}`
}

/** Adds a style sheet to the page, once. @param {string} name of a file beside this one */
export function addStyle(name) {
  const href = new URL(name, import.meta.url).href
  if (document.querySelector(`link[href="${href}"]`)) return
  document.head.append(Object.assign(document.createElement('link'), { rel: 'stylesheet', href }))
}
