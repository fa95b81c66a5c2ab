// Versions of one chunk, side by side over the player: one is picked, the others stay until they are cleared.

import { button, element } from './dom.js'
import { words } from './texts.js'

/** @typedef {import('./takes.js').TakeState} TakeState */
/**
 * @typedef {object} Version
 * @property {string} seed
 * @property {TakeState} take that has it
 * @property {boolean} current whether it is the film's own
 * @property {TakeState[]} spares takes that were made for this version alone
 */
/**
 * @typedef {object} VersionsHost
 * @property {(take: TakeState, chunk: number, part: 'thumbnail' | 'video') => string} address
 * @property {(take: TakeState, chunk: number) => Version[]} [versions] of a chunk, as far as they are there
 * @property {(take: TakeState, chunk: number, count: number) => Promise<string>} [roll] queues more; what to say of it
 * @property {(take: TakeState, chunk: number, version: Version) => string} [pick] goes on from one; what to say of it
 * @property {(takes: TakeState[]) => Promise<void>} [clear] deletes them; chunks of films stay
 */

const ROLLS = 3

export class Versions {
  /** @param {VersionsHost} host @param {(sentence: string) => void} say */
  constructor(host, say) {
    this.host = host
    this.say = say
    /** @type {TakeState | null} */
    this._film = null
    this._chunk = 0
    this._wanted = 0
    /** @type {Version[]} */
    this._made = []
    this._shown = ''
    this._title = element('span', 'versions-title')
    this._list = element('div', 'versions-list')
    const more = button(words('more'), words('makes_more'), 'more')
    more.onclick = () => void this._roll()
    this._clear = button(words('clear'), words('clears'), 'clear')
    this._clear.onclick = () => void this._clearOthers()
    const close = button('✕', words('close'), 'close-versions')
    close.onclick = () => this.close()
    const head = element('div', 'versions-head', this._title, more, this._clear, close)
    this.root = element('div', 'versions', head, this._list)
    // The screen below it plays and pauses at a click.
    this.root.onclick = (event) => event.stopPropagation()
    this.root.hidden = true
  }

  /**
   * Shows the versions of a chunk; makes three where there is only the film's own.
   * @param {TakeState} film
   * @param {number} chunk
   */
  open(film, chunk) {
    this._film = film
    this._chunk = chunk
    this.root.hidden = false
    this._wanted = 0
    this.refresh()
    if (this._made.length < 2) void this._roll()
  }

  close() {
    this.root.hidden = true
    this._film = null
    this._shown = ''
    this._list.replaceChildren()
  }

  async _roll() {
    const film = this._film
    if (!film) return
    this._wanted = Math.max(this._wanted, this._made.length) + ROLLS
    this.refresh()
    this.say((await this.host.roll?.(film, this._chunk, ROLLS)) ?? '')
  }

  async _clearOthers() {
    await this.host.clear?.(this._made.flatMap(({ spares }) => spares))
    this._wanted = 0
    this.refresh()
  }

  /** Draws what there is now. */
  refresh() {
    if (!this._film) return
    this._made = this.host.versions?.(this._film, this._chunk) ?? []
    const waiting = Math.max(0, this._wanted - this._made.length)
    const key = JSON.stringify([this._chunk, waiting, this._made.map(({ seed, take }) => [seed, take.id])])
    // Films that play would begin again.
    if (key === this._shown) return
    this._shown = key
    this._title.textContent = words('versions_of', { chunk: this._chunk + 1 })
    this._clear.disabled = this._made.every(({ spares }) => !spares.length)
    const empty = Array.from({ length: waiting }, () => element('div', 'version', words('making')))
    this._list.replaceChildren(...this._made.map((version) => this._item(version)), ...empty)
  }

  /** @param {Version} version */
  _item(version) {
    const { seed, take, current } = version
    const video = element('video', 'version-film')
    const address = this.host.address(take, this._chunk, 'video')
    Object.assign(video, { src: address, muted: true, loop: true, autoplay: true, playsInline: true })
    video.setAttribute('aria-label', words('version', { seed }))
    const pick = button(words(current ? 'in_film' : 'pick'), words('picks', { seed }), 'pick')
    pick.disabled = current
    pick.onclick = () => {
      if (this._film) this.say(this.host.pick?.(this._film, this._chunk, version) ?? '')
    }
    const item = element('div', 'version', video, pick)
    item.dataset.seed = seed
    item.dataset.current = String(current)
    return item
  }
}
