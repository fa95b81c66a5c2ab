// A film's chunks along the time: seconds on top, prompts as bands, a cell per chunk. Only what is in view exists.

import { Bands } from './bands.js'
import { Cell } from './cell.js'
import { element, filmLength } from './dom.js'
import { words } from './texts.js'

/** @typedef {import('./takes.js').ChunkState} ChunkState */
/**
 * What a timeline shows.
 * @typedef {object} TimelineModel
 * @property {number} first chunk
 * @property {number} count of chunks
 * @property {number} seconds of film in a chunk
 * @property {[number, string][]} rows prompts by the chunk they begin at
 * @property {number[]} [waiting] chunks at which prompts begin that no chunk has used
 * @property {[number, string | number][]} seeds changes of the seed
 * @property {number} stale the first chunk that another render makes anew
 * @property {boolean} editable whether the prompts can be changed here
 */
/**
 * @typedef {object} TimelineHost
 * @property {(chunk: number) => ChunkState | undefined} state
 * @property {(chunk: number) => string | null} thumbnail its address
 * @property {(chunk: number) => void} chosen
 * @property {(row: number, first: number) => void} moveRow
 * @property {(row: number, text: string) => void} writeRow
 */

const [LEAST_CELL, LARGEST_CELL] = [44, 240]
const MORE_CELLS = 3
const TICK_SPACE = 52
const TICKS = [1, 2, 5, 10, 20, 50, 100, 200, 500, 1000]

export class Timeline {
  /** @param {TimelineHost} host */
  constructor(host) {
    this.host = host
    /** @type {TimelineModel} */
    this.model = { first: 0, count: 0, seconds: 1, rows: [], seeds: [], stale: Infinity, editable: false }
    this.chosen = 0
    this.cellWidth = LEAST_CELL
    /** @type {Map<number, Cell>} */
    this._cells = new Map()
    this._frame = 0
    this._all = false
    this._seconds = 0
    this._ruler = element('div', 'timeline-ruler')
    this._ruler.setAttribute('aria-hidden', 'true')
    this.bands = new Bands(host)
    this.list = element('div', 'timeline-cells')
    this.list.tabIndex = 0
    this.list.setAttribute('role', 'listbox')
    this.list.setAttribute('aria-label', words('chunks'))
    this._head = element('div', 'timeline-head')
    this._track = element('div', 'timeline-track', this._ruler, this.bands.root, this.list, this._head)
    this.root = element('div', 'timeline', this._track)
    // The page's canvas leaves the wheel to elements with this mark.
    this.root.dataset.captureWheel = 'true'
    this.root.onscroll = () => this._schedule()
    this.root.onwheel = (event) => this._wheel(event)
    this.list.onclick = (event) => {
      const cell = /** @type {HTMLElement} */ (event.target).closest('[data-chunk]')
      if (cell instanceof HTMLElement) this.host.chosen(Number(cell.dataset.chunk))
    }
    this._observer = new ResizeObserver(() => this.draw())
    this._observer.observe(this.root)
  }

  /** @param {TimelineModel} model */
  show(model) {
    this.model = model
    this.draw()
  }

  /** Draws everything at the next frame, however many events come before. */
  draw() {
    this._all = true
    this._schedule()
  }

  /** One chunk changed. */
  change() {
    this._schedule()
  }

  _schedule() {
    this._frame ||= requestAnimationFrame(() => {
      this._frame = 0
      this._draw()
    })
  }

  _draw() {
    const { count } = this.model
    if (this._all) {
      this._all = false
      const room = this.root.clientWidth / Math.max(1, count)
      this.cellWidth = Math.min(LARGEST_CELL, Math.max(LEAST_CELL, Math.floor(room)))
      this._track.style.width = `${count * this.cellWidth}px`
      this.bands.show(this.model, this.cellWidth)
    }
    const from = Math.max(0, Math.floor(this.root.scrollLeft / this.cellWidth) - MORE_CELLS)
    const shown = Math.ceil(this.root.clientWidth / this.cellWidth) + 2 * MORE_CELLS
    const to = Math.min(count, from + shown)
    this._drawCells(from, to)
    this._drawRuler(from, to)
    this._drawHead()
  }

  /** @param {number} from position @param {number} to */
  _drawCells(from, to) {
    const { first, count, seeds, stale } = this.model
    for (const [chunk, cell] of this._cells) {
      if (chunk >= first + from && chunk < first + to) continue
      cell.root.remove()
      this._cells.delete(chunk)
    }
    for (let chunk = first + from; chunk < first + to; chunk++) {
      let cell = this._cells.get(chunk)
      if (!cell) {
        cell = new Cell(chunk)
        this._cells.set(chunk, cell)
        this.list.append(cell.root)
      }
      cell.place((chunk - first) * this.cellWidth, this.cellWidth, chunk - first + 1, count)
      const seed = seeds.find(([at]) => at === chunk)?.[1]
      cell.show(this.host.state(chunk), this.host.thumbnail(chunk), { seed, stale: chunk >= stale })
      cell.choose(chunk === this.chosen)
    }
    const active = this._cells.get(this.chosen)
    if (active) this.list.setAttribute('aria-activedescendant', active.root.id)
    else this.list.removeAttribute('aria-activedescendant')
  }

  /** @param {number} from @param {number} to */
  _drawRuler(from, to) {
    const step = TICKS.find((chunks) => chunks * this.cellWidth >= TICK_SPACE) ?? TICKS[TICKS.length - 1]
    const marks = []
    for (let at = Math.floor(from / step) * step; at < to; at += step) {
      const mark = element('span', 'timeline-tick', filmLength((this.model.first + at) * this.model.seconds))
      mark.style.left = `${at * this.cellWidth}px`
      marks.push(mark)
    }
    this._ruler.replaceChildren(...marks)
  }

  _drawHead() {
    this._head.style.left = `${(this._seconds / this.model.seconds) * this.cellWidth}px`
  }

  /** Marks the second that is on the screen. @param {number} seconds of the take */
  moveHead(seconds) {
    this._seconds = seconds
    this._drawHead()
  }

  /** @param {number} chunk */
  choose(chunk) {
    this.chosen = chunk
    this.reveal(chunk)
    this._schedule()
  }

  /** Scrolls the timeline alone: scrollIntoView would move the page's canvas as well. @param {number} chunk */
  reveal(chunk) {
    const left = (chunk - this.model.first) * this.cellWidth
    const { scrollLeft, clientWidth } = this.root
    if (left < scrollLeft) this.root.scrollLeft = left - this.cellWidth
    else if (left + this.cellWidth > scrollLeft + clientWidth)
      this.root.scrollLeft = left + 2 * this.cellWidth - clientWidth
  }

  /** @param {WheelEvent} event */
  _wheel(event) {
    event.stopPropagation()
    if (event.deltaX) return
    event.preventDefault()
    this.root.scrollLeft += event.deltaY
  }

  /** A picture could not be loaded. @param {EventTarget | null} target */
  failed(target) {
    for (const cell of this._cells.values()) cell.failed(target)
  }

  dispose() {
    cancelAnimationFrame(this._frame)
    this._observer.disconnect()
  }
}
