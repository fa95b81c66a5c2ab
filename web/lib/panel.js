// The panel of takes: every take that the store remembers, with a picture, its size and what can be done with it.

import { button, element, fileSize, filmLength } from './dom.js'
import { wordsOf } from './texts.js'
import { statusText } from './words.js'

/** @typedef {import('./takes.js').TakeState} TakeState */
/** @typedef {Omit<TakeState, 'chunks'> & { bytes: number, updated: string, finished: number, cover: number | null }} Summary */
/** @typedef {{ takes: Summary[], bytes: number }} Library */
/**
 * What the panel asks of the page. Each returns a sentence to show, or nothing.
 * @typedef {object} PanelHost
 * @property {() => Promise<Library | null>} list null while the server is away
 * @property {(take: Summary, chunk: number) => string} picture its address
 * @property {(take: Summary) => Promise<string | void>} open shows its strip over the window
 * @property {(take: Summary) => Promise<string | void>} load opens its workflow
 * @property {(take: Summary) => Promise<string | void>} resume queues it again
 * @property {(take: Summary) => Promise<string | void>} remove deletes it from the store
 */

const words = wordsOf('panel')

export class TakesPanel {
  /** @param {PanelHost} host */
  constructor(host) {
    this.host = host
    this._asked = 0
    this._status = element('p', 'panel-status')
    this._status.setAttribute('role', 'status')
    this._list = element('ul', 'panel-list')
    this._size = element('span', 'panel-size')
    const again = button('⟳', words('refresh'), 'refresh')
    again.onclick = () => void this.refresh()
    const head = element('div', 'panel-head', element('h2', 'panel-title', words('title')), this._size, again)
    this.root = element('div', 'panel', head, this._status, this._list)
    this._list.addEventListener('error', (event) => {
      if (event.target instanceof HTMLImageElement) event.target.style.visibility = 'hidden'
    }, true)
  }

  async refresh() {
    const asked = ++this._asked
    const library = await this.host.list()
    if (asked !== this._asked) return
    const takes = library?.takes ?? []
    this._size.textContent = library ? words('size', { size: fileSize(library.bytes) }) : ''
    this._list.replaceChildren(...takes.map((take) => this._item(take)))
    this._say(library ? (takes.length ? '' : words('empty')) : words('away'))
  }

  /** @param {string} sentence */
  _say(sentence) {
    this._status.textContent = sentence
    this._status.hidden = !sentence
  }

  /** @param {Summary} take */
  _item(take) {
    const cover = element('button', 'panel-cover')
    cover.type = 'button'
    cover.setAttribute('aria-label', words('plays', { name: take.name }))
    cover.dataset.action = 'open'
    if (take.cover !== null) {
      const picture = element('img')
      Object.assign(picture, { src: this.host.picture(take, take.cover), alt: '', loading: 'lazy' })
      cover.append(picture)
    }
    const seconds = filmLength(take.progress.film_seconds)
    const done = words('state', { done: take.finished, count: take.num_chunks, status: statusText(take.status) })
    const numbers = `${seconds} · ${take.width}×${take.height} · ${fileSize(take.bytes)} · ${when(take.updated)}`
    const text = element(
      'div',
      'panel-text',
      element('strong', 'panel-name', take.name),
      element('span', 'panel-state', done),
      element('span', 'panel-numbers', numbers),
      element('span', 'panel-prompt', take.rows.map(([, prompt]) => prompt).join(' / '))
    )
    const item = element('li', 'panel-item', cover, text, this._actions(take))
    item.dataset.take = take.id
    item.dataset.status = take.status
    item.onclick = (event) => this._clicked(event, take)
    return item
  }

  /** @param {Summary} take */
  _actions(take) {
    const name = { name: take.name }
    const resume = button(words('continue'), words('continues', name), 'resume')
    const load = button(words('load'), words('loads', name), 'load')
    const remove = button(words('remove'), words('removes', name), 'remove')
    resume.hidden = !take.resumable || !['interrupted', 'failed'].includes(take.status)
    load.hidden = !take.resumable
    remove.disabled = take.status === 'running'
    return element('div', 'panel-actions', button(words('play'), words('plays', name), 'open'), resume, load, remove)
  }

  /** @param {MouseEvent} event @param {Summary} take */
  _clicked(event, take) {
    const target = /** @type {HTMLElement} */ (event.target).closest('button')
    const action = target?.dataset.action
    if (!target || !action) return
    if (action === 'remove' && !target.dataset.sure) {
      // A second press within a moment; a dialog would be one more thing to read.
      target.dataset.sure = 'true'
      target.textContent = words('sure', { size: fileSize(take.bytes) })
      target.onblur = () => {
        delete target.dataset.sure
        target.textContent = words('remove')
      }
      return
    }
    void this._do(action, take)
  }

  /** @param {string} action @param {Summary} take */
  async _do(action, take) {
    const { open, load, resume, remove } = this.host
    const act = { open, load, resume, remove }[action]
    const sentence = await act?.(take)
    if (action === 'remove') await this.refresh()
    if (sentence) this._say(sentence)
  }
}

/** @param {string} time ISO 8601, as the server writes it: 2026-01-31T12:00:00+0000 */
function when(time) {
  const date = new Date(time.replace(/([+-]\d\d)(\d\d)$/, '$1:$2'))
  return Number.isNaN(date.getTime()) ? time : date.toLocaleString([], { dateStyle: 'medium', timeStyle: 'short' })
}
