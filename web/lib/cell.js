// One chunk on the timeline.

import { element } from './dom.js'
import { words } from './texts.js'

/** @typedef {import('./takes.js').ChunkState} ChunkState */
/** @typedef {{ seed: string | number | undefined, stale: boolean }} Marks */

let cells = 0

export class Cell {
  /** @param {number} chunk */
  constructor(chunk) {
    this.chunk = chunk
    this._fill = element('span', 'cell-fill')
    this._note = element('span', 'cell-note')
    this._number = element('span', 'cell-number', String(chunk + 1))
    this._seed = element('span', 'cell-seed', '◆')
    this._reused = element('span', 'cell-reused', '⟲')
    this._drift = element('span', 'cell-drift', words('drift'))
    const marks = [this._fill, this._note, this._number, this._seed, this._reused, this._drift]
    for (const mark of marks) mark.setAttribute('aria-hidden', 'true')
    // What the marks say, in words for those who do not see them.
    this._words = element('span', 'cell-words')
    this.root = element('div', 'cell', ...marks, this._words)
    this.root.dataset.chunk = String(chunk)
    this.root.id = `helios-cell-${cells++}`
    this.root.setAttribute('role', 'option')
    this._shown = ''
    /** @type {HTMLImageElement | null} */
    this._picture = null
  }

  /** @param {number} left @param {number} width @param {number} position @param {number} count */
  place(left, width, position, count) {
    this.root.style.left = `${left}px`
    this.root.style.width = `${width}px`
    this.root.setAttribute('aria-posinset', String(position))
    this.root.setAttribute('aria-setsize', String(count))
  }

  /** @param {boolean} chosen */
  choose(chosen) {
    this.root.setAttribute('aria-selected', String(chosen))
  }

  /**
   * @param {ChunkState | undefined} state undefined while it waits
   * @param {string | null} thumbnail its address
   * @param {Marks} marks
   */
  show(state, thumbnail, { seed, stale }) {
    const kind = state?.state ?? 'waiting'
    const key = JSON.stringify([state, thumbnail, seed, stale])
    if (key === this._shown) return
    this._shown = key
    this.root.dataset.state = kind
    this.root.toggleAttribute('data-stale', stale && kind === 'finished')
    this._seed.hidden = seed === undefined
    this._reused.hidden = !state?.reused
    this._drift.hidden = !state?.anti_drift
    const steps = kind === 'sampling' && state?.step && state.total ? state.step / state.total : 0
    this._fill.style.width = `${kind === 'decoding' ? 100 : 100 * steps}%`
    this._fill.dataset.stage = String(state?.stage ?? 0)
    this._note.textContent = steps ? `${state?.step}/${state?.total}` : kind === 'decoding' ? words(kind) : ''
    const said = [words('chunk', { chunk: this.chunk + 1 }), words(kind), ...(state?.reused ? [words('reused')] : [])]
    if (seed !== undefined) said.push(words('seed', { seed }))
    if (state?.anti_drift) said.push(words('drifted'))
    if (stale) said.push(words('stale'))
    this.root.title = this._words.textContent = said.join(', ')
    this._showPicture(kind === 'finished' ? thumbnail : null)
  }

  /** @param {string | null} thumbnail */
  _showPicture(thumbnail) {
    if ((this._picture?.dataset.asked ?? null) === thumbnail) return
    this._picture?.remove()
    this._picture = null
    if (!thumbnail) return
    this._picture = document.createElement('img')
    Object.assign(this._picture, { draggable: false, alt: '', src: thumbnail })
    this._picture.dataset.asked = thumbnail
    this.root.prepend(this._picture)
  }

  /** @param {EventTarget | null} target */
  failed(target) {
    if (target !== this._picture || !this._picture) return
    this._picture.hidden = true
    this._note.textContent = words('no_picture')
  }
}
