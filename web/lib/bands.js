// The prompts of a film as coloured bands over its chunks: borders are dragged, texts edited in place.

import { element } from './dom.js'
import { words } from './texts.js'

/** @typedef {import('./timeline.js').TimelineModel} TimelineModel */
/**
 * @typedef {object} BandsHost
 * @property {(row: number, first: number) => void} moveRow
 * @property {(row: number, text: string) => void} writeRow
 */

// Degrees between neighbours' hues, so that no two bands side by side look alike.
const HUE_STEP = 137

export class Bands {
  /** @param {BandsHost} host */
  constructor(host) {
    this.host = host
    this.root = element('div', 'bands')
    this.root.setAttribute('role', 'group')
    this.root.setAttribute('aria-label', words('prompts'))
    this._shown = ''
    this._width = 1
    /** @type {TimelineModel | null} */
    this._model = null
  }

  /** @param {TimelineModel} model @param {number} width of a chunk */
  show(model, width) {
    const key = JSON.stringify([model.first, model.count, model.rows, model.waiting, model.editable, width])
    // A border that is being dragged and a text that is being written stay.
    if (key === this._shown || this.root.querySelector('textarea, [data-dragged]')) return
    this._shown = key
    this._model = model
    this._width = width
    const focused = /** @type {HTMLElement | null} */ (this.root.querySelector(':focus'))
    this.root.replaceChildren(...model.rows.flatMap((_, row) => this._row(row)))
    const again = focused && this.root.querySelector(`.${focused.className}[data-row='${focused.dataset.row}']`)
    if (again instanceof HTMLElement) again.focus({ preventScroll: true })
  }

  /** @param {number} row @returns {[number, number]} its chunks, from and to, counted from the take's first */
  _span(row) {
    const { first, count, rows } = /** @type {TimelineModel} */ (this._model)
    const from = Math.min(Math.max(0, rows[row][0] - first), count)
    const to = Math.min(Math.max(from, (rows[row + 1]?.[0] ?? Infinity) - first), count)
    return [from, to]
  }

  /** @param {number} row @returns {HTMLElement[]} */
  _row(row) {
    const model = /** @type {TimelineModel} */ (this._model)
    const [from, to] = this._span(row)
    if (from === to) return []
    const text = model.rows[row][1]
    const band = element('button', 'band', element('span', 'band-text', text || words('no_prompt')))
    band.type = 'button'
    band.style.left = `${from * this._width}px`
    band.style.width = `${(to - from) * this._width}px`
    band.style.setProperty('--helios-hue', String((205 + row * HUE_STEP) % 360))
    band.dataset.row = String(row)
    band.toggleAttribute('data-waiting', Boolean(model.waiting?.includes(model.rows[row][0])))
    band.title = model.editable ? `${text}\n\n${words('edit')}` : text
    band.ondblclick = () => this.edit(row)
    band.onkeydown = (event) => {
      if (event.key !== 'Enter') return
      event.preventDefault()
      this.edit(row)
    }
    return row && model.editable && model.rows[row][0] > model.first ? [band, this._border(row, from)] : [band]
  }

  /** @param {number} row @param {number} at */
  _border(row, at) {
    const model = /** @type {TimelineModel} */ (this._model)
    const border = element('div', 'band-border')
    border.tabIndex = 0
    border.dataset.row = String(row)
    border.style.left = `${at * this._width}px`
    border.title = words('move_border')
    const [least, most] = [model.rows[row - 1][0] + 1, (model.rows[row + 1]?.[0] ?? model.first + model.count) - 1]
    for (const [name, value] of Object.entries({
      role: 'slider',
      'aria-label': words('border', { row: row + 1 }),
      'aria-valuemin': least + 1,
      'aria-valuemax': most + 1,
      'aria-valuenow': model.rows[row][0] + 1
    }))
      border.setAttribute(name, String(value))
    const clamped = (/** @type {number} */ chunk) => Math.min(Math.max(chunk, least), Math.max(least, most))
    border.onkeydown = (event) => {
      const by = { ArrowLeft: -1, ArrowRight: 1 }[event.key]
      if (!by) return
      event.preventDefault()
      event.stopPropagation()
      this._move(row, clamped(model.rows[row][0] + by))
    }
    border.onpointerdown = (event) => this._drag(event, border, row, clamped)
    return border
  }

  /** @param {number} row @param {number} first */
  _move(row, first) {
    if (first !== this._model?.rows[row][0]) this.host.moveRow(row, first)
  }

  /**
   * @param {PointerEvent} event @param {HTMLElement} border @param {number} row
   * @param {(chunk: number) => number} clamped
   */
  _drag(event, border, row, clamped) {
    event.preventDefault()
    event.stopPropagation()
    const { first } = /** @type {TimelineModel} */ (this._model)
    // The canvas scales its nodes: screen pixels are not those of the timeline.
    const box = this.root.getBoundingClientRect()
    const scale = box.width / this.root.offsetWidth || 1
    const chunkAt = (/** @type {number} */ x) => clamped(first + Math.round((x - box.left) / scale / this._width))
    let target = chunkAt(event.clientX)
    border.setPointerCapture(event.pointerId)
    border.dataset.dragged = ''
    border.onpointermove = (moved) => {
      moved.stopPropagation()
      target = chunkAt(moved.clientX)
      border.style.left = `${(target - first) * this._width}px`
    }
    border.onlostpointercapture = () => {
      delete border.dataset.dragged
      border.onpointermove = border.onlostpointercapture = null
      this._move(row, target)
    }
  }

  /** Opens a prompt's text for writing. @param {number} row */
  edit(row) {
    const model = this._model
    const text = model?.rows[row]?.[1]
    if (!model?.editable || text === undefined || this.root.querySelector('textarea')) return
    const field = element('textarea', 'band-field')
    const [from] = this._span(row)
    field.style.left = `${from * this._width}px`
    field.value = text
    field.setAttribute('aria-label', words('prompt', { row: row + 1 }))
    let open = true
    const close = (/** @type {boolean} */ write) => {
      if (!open) return
      open = false
      field.remove()
      this._shown = ''
      if (write && field.value.trim() !== text) this.host.writeRow(row, field.value.replace(/\s*\n\s*/g, ' ').trim())
      else this.show(model, this._width)
    }
    field.onblur = () => close(true)
    field.onkeydown = (event) => {
      event.stopPropagation()
      if (event.key === 'Escape') close(false)
      if (event.key !== 'Enter' || event.shiftKey) return
      event.preventDefault()
      close(true)
    }
    this.root.append(field)
    field.focus()
    field.select()
  }
}
