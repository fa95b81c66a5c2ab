// A player for a film that lies in parts: it scrubs over all of them as over one film, and shows pictures of the chunk
// at work while there is nothing to play.

import { button, clock, element, filmLength } from './dom.js'
import { words } from './texts.js'

/**
 * A part of the film, by seconds of the film.
 * @typedef {object} Source
 * @property {number} from
 * @property {number} to
 * @property {string} address
 * @property {boolean} video a moving picture otherwise
 * @property {import('./growing.js').GrowingFilm} [growing] what loads it, while it grows
 */
/**
 * @typedef {object} PlayerHost
 * @property {(address: string) => Promise<boolean>} exists whether there is something to load
 * @property {(seconds: number) => void} moved to another second of the film
 */

const FRAME_SECONDS = 1 / 24
// Two chunks: less is the newest one, and what comes in while it plays.
const LEAST_LAG = 3

export class Player {
  /** @param {PlayerHost} host */
  constructor(host) {
    this.host = host
    /** @type {Source[]} */
    this.sources = []
    this.seconds = 0
    this.length = 0
    this.wants = false
    this._grows = false
    this._waits = false
    /** @type {Source | null} */
    this._shown = null
    this._asked = 0
    // One plays, the other loads what follows.
    this._videos = [this._video(), this._video()]
    this._picture = element('img', 'player-picture')
    this._picture.alt = ''
    this._text = element('div', 'player-text')
    this.screen = element('div', 'player-screen', ...this._videos, this._picture, this._text)
    this._toggle = button('▶', words('play'), 'play')
    this._sound = button('♪', words('sound'), 'sound')
    this._range = element('input', 'player-range')
    Object.assign(this._range, { type: 'range', min: '0', step: String(FRAME_SECONDS), value: '0' })
    this._range.setAttribute('aria-label', words('position'))
    this._time = element('span', 'player-time')
    this._live = button(words('live'), words('follows'), 'live')
    this.controls = element('div', 'player-controls', this._toggle, this._range, this._time, this._live, this._sound)
    this.root = element('div', 'player', this.screen, this.controls)
    this._toggle.onclick = () => this.toggle()
    this._sound.onclick = () => this._mute(!this._videos[0].muted)
    this._live.onclick = () => this.follow()
    this._range.oninput = () => void this.seek(this._range.valueAsNumber, this.wants)
    this.screen.onclick = () => this.toggle()
    this._mute(true)
    this.say('')
    this._drawTime()
  }

  _video() {
    const video = element('video', 'player-video')
    Object.assign(video, { playsInline: true, preload: 'auto', hidden: true })
    video.setAttribute('aria-label', words('film'))
    video.ontimeupdate = () => this._moved(video)
    video.onended = () => this._ended(video)
    video.onerror = () => {
      if (!this._is(video)) return
      if (this._shown?.growing) this._shown.growing.failed()
      else this.say(words('unplayable'))
    }
    return video
  }

  /**
   * @param {Source[]} sources in the film's order
   * @param {number} length of the whole film, in seconds
   * @param {boolean} [grows] whether more will come
   */
  load(sources, length, grows = false) {
    this.sources = sources
    this.length = length
    this._grows = grows
    this._range.max = String(length)
    this._toggle.disabled = this._range.disabled = !sources.length
    const shown = this._shown
    const same = sources.find(({ address }) => address === shown?.address)
    if (same) this._shown = same
    // It grows no more: the same second of what there is now.
    else if (shown?.growing) void this.seek(this.seconds, this.wants)
    const next = this._waits && shown && this._after(shown)
    if (next) void this.seek(next.from, true)
    this._drawTime()
  }

  /** Whether the film is on the screen. */
  get shows() {
    return this._shown !== null
  }

  /** Plays the newest chunk of a film that grows, and what comes after it. */
  follow() {
    const source = this.sources.at(-1)
    if (source) void this.seek(source.growing ? source.to - source.growing.seconds : source.from, true)
  }

  /** Shows a picture of what is made now, as long as nothing is played. @param {string} address */
  live(address) {
    if (this._shown) return
    this._show(null, this._picture)
    this._picture.src = address
  }

  /** Empties the screen. @param {string} text */
  say(text) {
    this._pause()
    this._show(null, this._text)
    this._text.textContent = text
  }

  /** @param {number} seconds @returns {Source | undefined} the part there, or the next one */
  _at(seconds) {
    return this.sources.find(({ to }) => seconds < to - FRAME_SECONDS / 2) ?? this.sources.at(-1)
  }

  /** Goes to a second of the film. @param {number} seconds @param {boolean} play */
  async seek(seconds, play) {
    const source = this._at(seconds)
    if (!source) return
    const asked = ++this._asked
    this._waits = false
    this.seconds = Math.min(Math.max(seconds, source.from), source.to)
    this.wants = play
    this._drawTime()
    this.host.moved(this.seconds)
    const there = this._videos.find((video) => video.dataset.address === source.address)
    if (!there && !source.growing && !(await this.host.exists(source.address))) {
      if (asked === this._asked) this.say(words('part_gone'))
      return
    }
    if (asked !== this._asked) return
    if (!source.video) {
      this._pause()
      this._picture.src = source.address
      this._show(source, this._picture)
      return
    }
    const video = there ?? this._spare()
    this._open(video, source)
    video.currentTime = Math.max(0, seconds - source.from)
    this._show(source, video)
    source.growing?.fill()
    for (const other of this._videos)
      if (this.sources.some(({ address }) => address === other.dataset.address)) {
        if (other !== video) other.pause()
      } else this._empty(other)
    if (play) await video.play().catch(() => {})
    else video.pause()
    this._drawTime()
    this._openNext(source)
  }

  /** @param {HTMLVideoElement} video */
  _is(video) {
    return this._shown !== null && video.dataset.address === this._shown.address
  }

  _spare() {
    return this._videos.find((video) => !this._is(video)) ?? this._videos[0]
  }

  /** @param {HTMLVideoElement} video @param {Source} source */
  _open(video, source) {
    if (video.dataset.address === source.address) return
    video.dataset.address = source.address
    if (source.growing) {
      this._growing = source.growing
      this._growing.open(video)
    } else video.src = source.address
  }

  /** @param {Source} source @returns {Source | undefined} */
  _after(source) {
    return this.sources.find(({ from }) => from >= source.to - FRAME_SECONDS / 2)
  }

  /** @param {Source} source */
  _openNext(source) {
    const next = this._after(source)
    if (next?.video && next.address !== source.address) this._open(this._spare(), next)
  }

  /** @param {HTMLVideoElement} video */
  _moved(video) {
    if (!this._is(video) || !this._shown || video.seeking || video.readyState < 2) return
    this._shown.growing?.fill()
    this.seconds = Math.min(this._shown.from + video.currentTime, this._shown.to)
    this._drawTime()
    this.host.moved(this.seconds)
  }

  /** @param {HTMLVideoElement} video */
  _ended(video) {
    if (!this._is(video) || !this._shown || !this.wants) return
    const next = this._after(this._shown)
    if (next) void this.seek(next.from, true)
    else if (this._grows) this._waits = true
    else this._pause()
  }

  toggle() {
    if (this.wants) this._pause()
    else void this.seek(this.seconds >= this.length - FRAME_SECONDS ? 0 : this.seconds, true)
  }

  _pause() {
    this.wants = this._waits = false
    for (const video of this._videos) video.pause()
    this._drawTime()
  }

  /** @param {Source | null} source @param {HTMLElement} shown */
  _show(source, shown) {
    this._shown = source
    for (const part of [...this._videos, this._picture, this._text]) part.hidden = part !== shown
  }

  /** @param {boolean} muted */
  _mute(muted) {
    for (const video of this._videos) video.muted = muted
    this._sound.setAttribute('aria-pressed', String(!muted))
  }

  _drawTime() {
    this._toggle.textContent = this.wants ? '❚❚' : '▶'
    this._toggle.setAttribute('aria-label', words(this.wants ? 'pause' : 'play'))
    this._range.value = String(this.seconds)
    const text = `${clock(Math.floor(this.seconds))} / ${clock(this.length)}`
    this._time.textContent = text
    this._range.setAttribute('aria-valuetext', text)
    this._live.hidden = !this._grows || !this.sources.length
    const behind = (this.sources.at(-1)?.to ?? 0) - this.seconds
    this._live.textContent = `${words('live')}${behind > LEAST_LAG ? ` −${filmLength(behind)}` : ''}`
  }

  /** Another take: nothing of the last one stays. @param {string} text */
  reset(text) {
    this._asked++
    this.seconds = 0
    for (const video of this._videos) this._empty(video)
    this.load([], 0)
    this.say(text)
  }

  /** @param {HTMLVideoElement} video */
  _empty(video) {
    if (!video.dataset.address) return
    if (this._growing?.address === video.dataset.address) this._growing.close()
    delete video.dataset.address
    video.removeAttribute('src')
    video.load()
  }
}
