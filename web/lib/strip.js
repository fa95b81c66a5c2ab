// One node's film strip: a line that tells how the take goes, a player, a timeline, and what can be done with the
// chosen chunk. It draws a TakeState and a Plan; where they come from and what its buttons do is film_strip.js's
// business.

import { button, clock, element, filmLength } from './dom.js'
import { Director } from './director.js'
import { GrowingFilm } from './growing.js'
import { staleFrom } from './plan.js'
import { Player } from './player.js'
import { chunkSeconds, finishedChunks, rowIndexAt } from './takes.js'
import { words } from './texts.js'
import { Timeline } from './timeline.js'
import { Versions } from './versions.js'
import { progressLine } from './words.js'

/** @typedef {import('./takes.js').TakeState} TakeState */
/** @typedef {import('./takes.js').ChunkState} ChunkState */
/** @typedef {import('./plan.js').Plan} Plan */
/** @typedef {import('./player.js').Source} Source */
/**
 * What a strip asks of the page. Without `plan` it shows a take and changes nothing.
 * @typedef {import('./versions.js').VersionsHost & import('./director.js').DirectorHost & Host} StripHost
 */
/**
 * @typedef {object} Host
 * @property {(take: TakeState, chunk: number, part: 'thumbnail' | 'video') => string} address of a picture or part
 * @property {(take: TakeState) => string} filmAddress of the finished film
 * @property {(take: TakeState) => string} streamAddress of the film while it grows
 * @property {(address: string) => Promise<boolean>} exists whether there is something to load
 * @property {(take: TakeState) => Promise<string>} resume queues the take again; what to say about it
 * @property {() => Plan} [plan] what the workflow says now
 * @property {(rows: [number, string][]) => void} [writeRows] changes its prompts
 * @property {(take: TakeState, chunk: number) => string} [redo] queues again from a chunk on; what to say about it
 * @property {(strip: FilmStrip) => void} [enlarge] shows the strip over the whole window, or back in its place
 */

/** Least height of a strip in a node, in units of the graph: it is there before the first take, and stays. */
export const STRIP_HEIGHT = 306

export class FilmStrip {
  /** @param {StripHost} host */
  constructor(host) {
    this.host = host
    /** @type {TakeState | null} */
    this.take = null
    /** @type {Map<number, ChunkState>} */
    this._states = new Map()
    this._said = ''
    this._chosen = 0
    this._frame = 0
    /** The finished film, once it is known to be there. @type {Source | null} */
    this._film = null
    /** What plays the film while it grows; false where it cannot. @type {GrowingFilm | false | null} */
    this._growing = null
    this._title = element('span', 'strip-title')
    this._title.setAttribute('role', 'status')
    this._numbers = element('span', 'strip-numbers')
    this._fill = element('div', 'strip-fill')
    this._message = element('div', 'strip-message')
    this.player = new Player({ exists: host.exists, moved: (seconds) => this._moved(seconds) })
    this.timeline = new Timeline({
      state: (chunk) => this._states.get(chunk),
      thumbnail: (chunk) => this._thumbnail(chunk),
      chosen: (chunk) => {
        this.director.at(chunk)
        this.choose(chunk, true)
      },
      moveRow: (row, first) => this._editRows((rows) => (rows[row][0] = first)),
      writeRow: (row, text) => this._editRows((rows) => (rows[row][1] = text))
    })
    this.director = new Director(host, (sentence) => this.say(sentence))
    this.versions = new Versions(host, (sentence) => this.say(sentence))
    this.player.screen.append(this.versions.root)
    this._caption = element('span', 'strip-caption')
    this._buttons = {
      resume: button(words('continue'), words('continues'), 'resume'),
      redo: button(words('redo'), words('redoes'), 'redo'),
      roll: button(words('versions'), words('makes_versions'), 'roll'),
      split: button(words('split'), words('splits'), 'split'),
      enlarge: button('⤢', words('enlarges'), 'enlarge')
    }
    this._actions = element('div', 'strip-actions', this._caption, ...Object.values(this._buttons))
    this.inner = element(
      'div',
      'strip-inner',
      element('div', 'strip-head', this._title, this._numbers),
      element('div', 'strip-bar', this._fill),
      this._message,
      this.player.root,
      this.director.root,
      this.timeline.root,
      this._actions
    )
    this.root = element('div', 'strip', this.inner)
    this.root.style.minHeight = `${STRIP_HEIGHT}px`
    this.inner.addEventListener('click', (event) => this._clicked(event))
    this.inner.addEventListener('keydown', (event) => this._pressed(event))
    // Errors of pictures do not bubble: one listener sees them all on their way down.
    this.inner.addEventListener('error', (event) => this.timeline.failed(event.target), true)
    this.player.reset(words('idle'))
    this._draw()
  }

  // -- what the page tells -------------------------------------------------------------------------

  /** @param {TakeState} take */
  show(take) {
    if (this.take?.id !== take.id) {
      this._said = ''
      this._film = null
      this._growing = null
      this.versions.close()
      this.player.reset(take.status === 'running' ? '' : words('choose'))
      this._chosen = take.first_chunk
      this.timeline.chosen = take.first_chunk
      this.inner.style.setProperty('--helios-aspect', `${take.width} / ${take.height}`)
    }
    this.take = take
    this.root.dataset.take = this.inner.dataset.take = take.id
    this._states = new Map(take.chunks.map((chunk) => [chunk.chunk, chunk]))
    this.end()
  }

  /** The workflow changed. */
  planned() {
    this._schedule()
  }

  /** @param {ChunkState} chunk */
  change(chunk) {
    this._states.set(chunk.chunk, chunk)
    if (chunk.state === 'finished') this._load()
    if (chunk.state !== 'finished' && !this.inner.matches(':hover, :focus-within')) this.timeline.reveal(chunk.chunk)
    this._schedule()
  }

  /** The take, as this strip knows it, has ended. */
  end() {
    this._load()
    this._schedule()
  }

  /** A picture of the chunk at work. @param {string} address */
  live(address) {
    if (this.take?.status === 'running') this.player.live(address)
  }

  /** @param {string} sentence */
  say(sentence) {
    this._said = sentence
    this._schedule()
  }

  // -- drawing -------------------------------------------------------------------------------------

  _schedule() {
    this._frame ||= requestAnimationFrame(() => {
      this._frame = 0
      this._draw()
    })
  }

  _draw() {
    const take = this.take
    const plan = take?.status === 'running' || take?.live ? undefined : this.host.plan?.()
    this.root.dataset.status = this.inner.dataset.status = take?.status ?? 'idle'
    this._drawHead(take)
    this._drawTimeline(take, plan)
    this._drawActions(take)
    this.director.show(take)
  }

  /** @param {TakeState | null} take */
  _drawHead(take) {
    const done = take ? finishedChunks(take) : 0
    this._title.textContent = take ? progressLine(take) : words('strip')
    const numbers = take ? [words('of_film', { length: filmLength(take.progress.film_seconds) })] : []
    if (take?.progress.fps) {
      const { fps } = take.progress
      numbers.push(`${fps.toFixed(fps < 10 ? 2 : 1)} fps`, words('real_time', { rate: (fps / take.film_fps).toFixed(2) }))
    }
    if (take?.status === 'running' && take.progress.seconds_left !== null && done < take.num_chunks)
      numbers.push(words('left', { time: clock(take.progress.seconds_left) }))
    this._numbers.textContent = numbers.join(' · ')
    this._fill.style.width = take ? `${(100 * done) / take.num_chunks}%` : '0'
    this._message.textContent = this._said || take?.message || ''
    this._message.hidden = !this._message.textContent
  }

  /** @param {TakeState | null} take @param {Plan} [plan] */
  _drawTimeline(take, plan) {
    const first = take?.first_chunk ?? 0
    const waiting = (take?.status === 'running' && take.directing?.pending.map(({ chunk }) => chunk)) || []
    const count = Math.max(take?.num_chunks ?? 0, plan?.num_chunks ?? 0, ...waiting.map((chunk) => chunk - first + 1))
    const stale = take && plan ? staleFrom(take, plan, count) : Infinity
    const fps = take?.film_fps ?? plan?.film_fps ?? 1
    this.timeline.show({
      first,
      count,
      seconds: take ? chunkSeconds(take) : 33 / fps,
      rows: plan?.rows.length ? plan.rows : (take?.rows ?? []),
      waiting,
      seeds: plan?.seeds ?? take?.seed_changes ?? [],
      stale,
      editable: Boolean(plan?.editable && this.host.writeRows)
    })
  }

  /** @param {TakeState | null} take */
  _drawActions(take) {
    const { resume, redo, roll, split, enlarge } = this._buttons
    const stopped = take && ['interrupted', 'failed'].includes(take.status)
    resume.hidden = !stopped || !take.resumable
    redo.hidden = !(this._directed() || this.host.redo) || !take
    roll.hidden = !this.host.roll || !take?.film
    roll.disabled = redo.disabled = this._states.get(this._chosen)?.state !== 'finished'
    split.hidden = !this.host.writeRows
    enlarge.hidden = !this.host.enlarge
    this._caption.textContent = take ? words('chunk', { chunk: this._chosen + 1 }) : ''
  }

  /** @param {number} chunk @returns {string | null} */
  _thumbnail(chunk) {
    return this.take && this._states.get(chunk)?.thumbnail ? this.host.address(this.take, chunk, 'thumbnail') : null
  }

  // -- playing -------------------------------------------------------------------------------------

  /** Gives the player what there is: the finished film, else the one that grows, else the parts of it. */
  _load() {
    const take = this.take
    if (!take) return
    const length = take.num_chunks * chunkSeconds(take)
    if (!this._film && take.status === 'finished' && take.film) void this._findFilm(take, length)
    const parts = [...this._states.values()].filter(({ state, thumbnail }) => state === 'finished' && thumbnail)
    parts.sort((a, b) => a.chunk - b.chunk)
    const grows = ['running', 'lost'].includes(take.status)
    const grown = this._film ?? (grows ? this._grow(take, parts) : undefined)
    this.player.load(grown ? [grown] : parts.map((part) => this._source(take, part)), length, grows)
    // A film whose every chunk is rolled again has no part for now, and goes on growing.
    if (!grows || this._film) this._growing &&= null
    if (grows && take.live && !this.player.shows) this.player.follow()
  }

  /** @param {TakeState} take @param {ChunkState[]} parts @returns {Source | undefined} */
  _grow(take, parts) {
    const hole = parts.findIndex(({ chunk, video }, index) => chunk !== take.first_chunk + index || !video)
    const to = (hole < 0 ? parts.length : hole) * chunkSeconds(take)
    if (!to || this._growing === false || !GrowingFilm.possible) return undefined
    const growing = this._growing || new GrowingFilm(this.host.streamAddress(take), () => this._loadParts())
    this._growing = growing
    if (take.status === 'running') growing.refresh()
    return { from: 0, to, address: growing.address, video: true, growing }
  }

  /** This browser does not play the film as one. */
  _loadParts() {
    this._growing = false
    this._load()
  }

  /** @param {TakeState} take @param {number} length in seconds */
  async _findFilm(take, length) {
    const film = { from: 0, to: length, address: this.host.filmAddress(take), video: true }
    const there = await this.host.exists(film.address)
    if (this.take?.id !== take.id || !there || this._film) return
    this._film = film
    this.player.load([film], length)
    void this.player.seek(this.player.seconds, this.player.wants)
  }

  /** @param {TakeState} take @param {ChunkState} part @returns {Source} */
  _source(take, part) {
    const seconds = chunkSeconds(take)
    const from = (part.chunk - take.first_chunk) * seconds
    const address = this.host.address(take, part.chunk, part.video ? 'video' : 'thumbnail')
    return { from, to: from + seconds, address, video: part.video }
  }

  /** @param {number} seconds */
  _moved(seconds) {
    if (!this.take) return
    this.timeline.moveHead(seconds)
    const { first_chunk, num_chunks } = this.take
    const chunk = first_chunk + Math.min(num_chunks - 1, Math.floor(seconds / chunkSeconds(this.take) + 1e-3))
    if (chunk !== this._chosen) this.choose(chunk)
  }

  /** @param {number} chunk @param {boolean} [play] whether the film goes there, too */
  choose(chunk, play = false) {
    const { first, count, seconds } = this.timeline.model
    this._chosen = Math.min(Math.max(chunk, first), first + Math.max(0, count - 1))
    this.timeline.choose(this._chosen)
    this._schedule()
    if (play && this._states.get(this._chosen)?.state === 'finished')
      void this.player.seek((this._chosen - first) * seconds, true)
  }

  // -- what people do ------------------------------------------------------------------------------

  /** @param {(rows: [number, string][]) => void} edit */
  _editRows(edit) {
    const rows = this.host.plan?.().rows.map(([first, text]) => /** @type {[number, string]} */ ([first, text]))
    if (!rows) return
    edit(rows)
    this.host.writeRows?.(rows)
    this._draw()
  }

  split() {
    const plan = this.host.plan?.()
    if (!plan) return
    if (plan.editable !== 'schedule') {
      this.say(words('no_schedule'))
      return
    }
    const at = rowIndexAt(plan.rows, this._chosen)
    if (at >= 0 && plan.rows[at][0] !== this._chosen)
      this._editRows((rows) => rows.splice(at + 1, 0, [this._chosen, rows[at][1]]))
    const row = rowIndexAt(this.host.plan?.().rows ?? [], this._chosen)
    // Once the timeline has drawn the new band.
    requestAnimationFrame(() => this.timeline.bands.edit(row))
  }

  /** @param {string | undefined} action */
  _do(action) {
    const take = this.take
    if (action === 'split') this.split()
    else if (action === 'enlarge') this.host.enlarge?.(this)
    else if (take && action === 'redo' && !this._buttons.redo.disabled) this._redo(take)
    else if (take && action === 'roll') this.versions.open(take, this._chosen)
    else if (take && action === 'resume') void this.host.resume(take).then((sentence) => this.say(sentence))
  }

  /** Whether the film takes directions now. */
  _directed() {
    return Boolean(this.host.direct && this.take?.directing?.live)
  }

  /** @param {TakeState} take */
  _redo(take) {
    if (this._directed()) void this.director.direct({ do: 'roll', chunk: this._chosen })
    else if (this.host.redo) this.say(this.host.redo(take, this._chosen))
  }

  /** @param {Event} event */
  _clicked(event) {
    const target = /** @type {HTMLElement} */ (event.target).closest('button')
    this._do(target?.dataset.action)
  }

  /** @param {KeyboardEvent} event */
  _pressed(event) {
    const target = /** @type {HTMLElement} */ (event.target)
    const isField = target.matches('textarea, input')
    if (isField || event.ctrlKey || event.metaKey || event.altKey) return
    const { first, count } = this.timeline.model
    /** @type {Record<string, () => void>} */
    const keys = {
      ' ': () => this.player.toggle(),
      ArrowLeft: () => this._step(this._chosen - 1),
      ArrowRight: () => this._step(this._chosen + 1),
      Home: () => this._step(first),
      End: () => this._step(first + count - 1),
      r: () => this._do('redo'),
      s: () => this._do('split')
    }
    const act = keys[event.key.length === 1 ? event.key.toLowerCase() : event.key]
    if (!act || (event.key === ' ' && target.matches('button'))) return
    // The page has its own meaning for these keys.
    event.preventDefault()
    event.stopPropagation()
    act()
  }

  /** @param {number} chunk */
  _step(chunk) {
    this.choose(chunk)
    const { first, seconds } = this.timeline.model
    if (this._states.get(this._chosen)?.state === 'finished')
      void this.player.seek((this._chosen - first) * seconds, this.player.wants)
  }

  /** Ends everything that would outlive the node. */
  dispose() {
    cancelAnimationFrame(this._frame)
    this.timeline.dispose()
    this.player.reset('')
  }
}
