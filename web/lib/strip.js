// One node's film strip: a cell per chunk, numbers, and a player for finished parts. It draws a TakeState; where
// takes come from and what its buttons do is the business of film_strip.js.

/**
 * One chunk that is no longer waiting; see ChunkState in nodes/live/events.py.
 * @typedef {object} ChunkState
 * @property {number} chunk
 * @property {'sampling' | 'decoding' | 'finished'} state
 * @property {number | null} stage
 * @property {number | null} step
 * @property {number | null} total
 * @property {boolean | null} reused
 * @property {boolean} thumbnail
 * @property {boolean} video
 * @property {boolean} [anti_drift]
 */
/**
 * A take at one moment; see TakeState in nodes/live/events.py.
 * @typedef {object} TakeState
 * @property {string} id
 * @property {string} node
 * @property {string | null} workflow
 * @property {number} first_chunk
 * @property {number} num_chunks
 * @property {number} chunk_frames
 * @property {number} film_fps
 * @property {number} width
 * @property {number} height
 * @property {number} seed
 * @property {[number, string][]} rows
 * @property {'running' | 'finished' | 'interrupted' | 'failed'} status
 * @property {string} message
 * @property {Progress} progress
 * @property {ChunkState[]} chunks
 */
/** @typedef {{film_seconds: number, fps: number, seconds_left: number | null}} Progress */
/**
 * What a strip asks of the page.
 * @typedef {object} StripHost
 * @property {(take: TakeState, chunk: number, part: 'thumbnail' | 'video') => string} address of a picture or part
 * @property {(address: string) => Promise<boolean>} exists whether there is something to load
 * @property {(take: TakeState, chunk: number) => string} redo queues again from a chunk on; what to say about it
 * @property {() => void} resized
 */

const IDLE = 'Film strip: every chunk shows here as it renders.'
const GONE = 'This part is no longer in the store. Queue the workflow again to make it again.'
const UNPLAYABLE = 'This browser cannot play the codec of this film; h264 plays everywhere.'

/**
 * @template {keyof HTMLElementTagNameMap} K
 * @param {K} tag
 * @param {string} [name] of its class, after "helios-strip-"
 * @param {HTMLElement[]} children
 * @returns {HTMLElementTagNameMap[K]}
 */
function element(tag, name, ...children) {
  const made = document.createElement(tag)
  if (name) made.className = `helios-strip-${name}`
  made.append(...children)
  return made
}

/** @param {number} seconds */
function clock(seconds) {
  const whole = Math.round(seconds)
  const [hours, minutes] = [Math.floor(whole / 3600), Math.floor(whole / 60) % 60]
  const tail = String(whole % 60).padStart(2, '0')
  return hours ? `${hours}:${String(minutes).padStart(2, '0')}:${tail}` : `${minutes}:${tail}`
}

/** @param {number} seconds */
const film = (seconds) => (seconds < 100 ? `${seconds.toFixed(1)} s` : clock(seconds))

/** @param {[number, string][]} rows @param {number} chunk @returns {[number, string] | undefined} the row in force */
const rowAt = (rows, chunk) => rows.filter(([first]) => first <= chunk).at(-1)

/** The elements of one chunk. */
class Cell {
  /** @param {number} chunk @param {[number, string] | undefined} row in force */
  constructor(chunk, row) {
    this.note = element('span', 'note')
    this.step = element('span', 'step')
    this.reused = element('span', 'tag helios-strip-reused')
    this.reused.textContent = 'reused'
    this.drift = element('span', 'tag helios-strip-drift')
    this.drift.textContent = 'anti-drift'
    const index = element('span', 'tag helios-strip-index')
    index.textContent = String(chunk)
    this.play = element('button', 'play', this.note, this.step, index, this.reused, this.drift)
    this.redo = element('button', 'redo')
    this.redo.textContent = '↻'
    this.redo.title = `Render again from chunk ${chunk}, with another seed`
    const text = element('div', 'row')
    text.textContent = row?.[1] ?? ''
    text.title = row?.[1] ?? ''
    text.toggleAttribute('data-first', row?.[0] === chunk)
    this.root = element('div', 'cell', this.play, this.redo, text)
    this.root.dataset.chunk = String(chunk)
    this.play.type = this.redo.type = 'button'
    this.show(undefined, null)
  }

  /**
   * @param {ChunkState | undefined} state undefined while it waits
   * @param {string | null} thumbnail its address
   */
  show(state, thumbnail) {
    const kind = state?.state ?? 'waiting'
    this.root.dataset.state = kind
    this.play.disabled = this.redo.hidden = kind !== 'finished'
    this.reused.hidden = !state?.reused
    this.drift.hidden = !state?.anti_drift
    this.note.textContent = kind === 'finished' ? 'done' : kind
    const sampled = kind === 'sampling' && state?.step && state.total ? state.step / state.total : 0
    if (sampled) this.note.textContent = `stage ${state?.stage}\nstep ${state?.step}/${state?.total}`
    this.note.style.whiteSpace = 'pre-line'
    this.step.style.width = `${100 * sampled}%`
    this.play.title = `Chunk ${this.root.dataset.chunk}: ${kind === 'finished' ? 'play this part' : kind}`
    const shown = this.play.querySelector('img')
    if (thumbnail && shown?.getAttribute('src') === thumbnail) return
    shown?.remove()
    if (!thumbnail) return
    const picture = document.createElement('img')
    picture.loading = 'lazy'
    picture.draggable = false
    picture.alt = ''
    picture.src = thumbnail
    this.note.after(picture)
  }
}

export class FilmStrip {
  /** @param {StripHost} host */
  constructor(host) {
    this.host = host
    /** @type {TakeState | null} */
    this.take = null
    /** Height of the content, in units of the graph. */
    this.height = 32
    /** @type {Map<number, Cell>} */
    this._cells = new Map()
    /** @type {Map<number, ChunkState>} */
    this._changed = new Map()
    this._frame = 0
    /** @type {number | null} */
    this._open = null
    this._said = ''
    this._title = element('span')
    this._numbers = element('span', 'numbers')
    this._head = element('div', 'head', this._title, this._numbers)
    this._fill = element('div')
    this._bar = element('div', 'bar', this._fill)
    this._message = element('div', 'message')
    this._screen = element('div')
    this._caption = element('span')
    const again = element('button')
    again.textContent = 'Render again from here'
    again.dataset.action = 'redo'
    const close = element('button')
    close.textContent = 'Close'
    close.dataset.action = 'close'
    for (const button of [again, close]) button.type = 'button'
    this._player = element('div', 'player', this._screen, element('div', 'caption', this._caption, again, close))
    this._grid = element('div', 'cells')
    // The page's canvas leaves the wheel to elements with this mark.
    this._grid.dataset.captureWheel = 'true'
    this.inner = element('div', 'inner', this._head, this._bar, this._message, this._player, this._grid)
    this.root = document.createElement('div')
    this.root.className = 'helios-strip'
    this.root.append(this.inner)
    this.root.addEventListener('click', (event) => this._clicked(event))
    // Errors of pictures do not bubble: one listener sees them all on their way down.
    this.root.addEventListener('error', (event) => this._failed(event), true)
    this._player.hidden = true
    this._drawHead()
    this._observer = new ResizeObserver(() => this._measure())
    this._observer.observe(this.inner)
  }

  /** @param {TakeState} take */
  show(take) {
    if (this.take?.id !== take.id) {
      this._close()
      this._cells.clear()
      this._said = ''
      for (let chunk = take.first_chunk; chunk < take.first_chunk + take.num_chunks; chunk++)
        this._cells.set(chunk, new Cell(chunk, rowAt(take.rows, chunk)))
      this._grid.replaceChildren(...[...this._cells.values()].map((cell) => cell.root))
      this.inner.style.setProperty('--helios-aspect', `${take.width} / ${take.height}`)
    }
    this.take = take
    this.root.dataset.take = take.id
    for (const chunk of take.chunks) this._changed.set(chunk.chunk, chunk)
    this._schedule()
  }

  /** @param {ChunkState} chunk */
  change(chunk) {
    this._changed.set(chunk.chunk, chunk)
    this._schedule()
  }

  /** The take, as this strip knows it, has ended. */
  end() {
    this._schedule()
  }

  /** Draws at the next frame, however many events come before. */
  _schedule() {
    this._frame ||= requestAnimationFrame(() => {
      this._frame = 0
      this._draw()
    })
  }

  _draw() {
    const take = this.take
    if (!take) return
    for (const [index, state] of this._changed) {
      const address = state.thumbnail ? this.host.address(take, index, 'thumbnail') : null
      this._cells.get(index)?.show(state, address)
    }
    const active = [...this._changed.values()].filter((chunk) => chunk.state !== 'finished').at(-1)
    this._changed.clear()
    if (active && !this._grid.matches(':hover')) this._scrollTo(active.chunk)
    this._drawHead()
  }

  /**
   * Scrolls the grid alone: scrollIntoView would move the page's canvas as well. Rows out of view have estimated
   * heights until they are shown, so it looks again.
   * @param {number} chunk
   */
  _scrollTo(chunk, looks = 3) {
    const cell = this._cells.get(chunk)?.root
    if (!cell) return
    const [top, bottom] = [cell.offsetTop, cell.offsetTop + cell.offsetHeight]
    if (top < this._grid.scrollTop) this._grid.scrollTop = top
    else if (bottom > this._grid.scrollTop + this._grid.clientHeight)
      this._grid.scrollTop = bottom - this._grid.clientHeight
    if (looks > 1) requestAnimationFrame(() => this._scrollTo(chunk, looks - 1))
  }

  _drawHead() {
    const take = this.take
    this._bar.hidden = this._grid.hidden = !take
    this.root.dataset.status = take?.status ?? 'idle'
    if (!take) {
      this._title.textContent = IDLE
      this._title.style.color = 'var(--descrip-text, #999)'
      this._message.hidden = true
      return
    }
    this._title.style.color = ''
    const done = take.chunks.filter((chunk) => chunk.state === 'finished').length
    const numbers = [`${film(take.progress.film_seconds)} of film`]
    if (take.progress.fps) numbers.push(`${take.progress.fps.toFixed(take.progress.fps < 10 ? 2 : 1)} fps`)
    if (take.status === 'running' && take.progress.seconds_left !== null)
      numbers.push(`${clock(take.progress.seconds_left)} left`)
    this._numbers.textContent = numbers.join(' · ')
    const words = { running: 'rendering', finished: 'finished', interrupted: 'stopped', failed: 'failed' }
    this._title.textContent = `${done} of ${take.num_chunks} chunks, ${words[take.status]}`
    this._fill.style.width = `${(100 * done) / take.num_chunks}%`
    this._message.textContent = this._said || take.message
    this._message.hidden = !this._message.textContent
  }

  /** @param {string} sentence */
  say(sentence) {
    this._said = sentence
    this._drawHead()
  }

  /** @param {Event} event */
  _clicked(event) {
    const target = /** @type {HTMLElement} */ (event.target).closest('button')
    const take = this.take
    if (!target || !take) return
    const chunk = Number(/** @type {HTMLElement | null} */ (target.closest('[data-chunk]'))?.dataset.chunk ?? this._open)
    if (target.dataset.action === 'close') this._close()
    else if (target.dataset.action === 'redo' || target.className.includes('redo')) this.say(this.host.redo(take, chunk))
    else if (chunk === this._open) this._close()
    else void this.play(chunk)
  }

  /** @param {Event} event */
  _failed(event) {
    const target = /** @type {HTMLElement} */ (event.target)
    const cell = this._cells.get(Number(/** @type {HTMLElement | null} */ (target.closest('[data-chunk]'))?.dataset.chunk))
    if (cell && target.tagName === 'IMG') {
      target.remove()
      cell.note.textContent = 'no picture'
    } else if (target.tagName === 'VIDEO' && this._open !== null) this._screenText(UNPLAYABLE)
  }

  /** Opens the player with a finished chunk. @param {number} chunk */
  async play(chunk) {
    const take = this.take
    const state = take?.chunks.find((known) => known.chunk === chunk)
    if (!take || state?.state !== 'finished') return
    this._close()
    this._open = chunk
    this._cells.get(chunk)?.root.toggleAttribute('data-open', true)
    const seconds = take.chunk_frames / take.film_fps
    this._caption.textContent = `Chunk ${chunk}, ${film(chunk * seconds)} to ${film((chunk + 1) * seconds)}`
    this._screenText('Loading …')
    this._player.hidden = false
    const address = this.host.address(take, chunk, state.video ? 'video' : 'thumbnail')
    const exists = await this.host.exists(address)
    if (this._open !== chunk || this.take?.id !== take.id) return
    if (exists) this._screen.replaceChildren(state.video ? this._video(address) : this._picture(address))
    else this._screenText(GONE)
  }

  /** @param {string} address */
  _video(address) {
    const video = document.createElement('video')
    Object.assign(video, { src: address, controls: true, loop: true, muted: true, autoplay: true, playsInline: true })
    return video
  }

  /** @param {string} address */
  _picture(address) {
    const picture = document.createElement('img')
    picture.src = address
    picture.alt = ''
    return picture
  }

  /** @param {string} text */
  _screenText(text) {
    const line = element('div', 'message')
    line.textContent = text
    this._screen.replaceChildren(line)
  }

  _close() {
    if (this._open !== null) this._cells.get(this._open)?.root.removeAttribute('data-open')
    this._open = null
    this._player.hidden = true
    const video = this._screen.querySelector('video')
    if (video) {
      // Taken out first, so that the source's removal is no error of this player's.
      video.remove()
      video.removeAttribute('src')
      video.load()
    }
    this._screen.replaceChildren()
  }

  _measure() {
    const height = this.inner.offsetHeight
    // Zero while the page does not show it.
    if (!height || height === this.height) return
    this.height = height
    this.host.resized()
  }

  /** Ends everything that would outlive the node. */
  dispose() {
    cancelAnimationFrame(this._frame)
    this._observer.disconnect()
    this._close()
  }
}
