// Directing a film while it is made: a line for what happens next, and what else its director may say.

import { button, element, filmLength } from './dom.js'
import { chunkSeconds } from './takes.js'
import { wordsOf } from './texts.js'

const words = wordsOf('director')

/** @typedef {import('./takes.js').TakeState} TakeState */
/** @typedef {{ direction: number, do: string, chunk: number, text?: string }} Pending a direction that no chunk has used */
/**
 * How a film is directed now; see nodes/live/direct_routes.py.
 * @typedef {object} Directing
 * @property {boolean} live whether it takes directions
 * @property {boolean} paused
 * @property {number} next_chunk the first that can still change
 * @property {{ chunk: number, text: string, blend: number }[]} rows
 * @property {Pending[]} pending
 * @property {string} seed_changes
 */
/** @typedef {{ error?: string, chunk?: number, second?: number, state?: Directing }} Answer */
/**
 * @typedef {object} DirectorHost
 * @property {(take: TakeState, direction: object) => Promise<Answer>} [direct]
 * @property {(picture: File) => Promise<{ error?: string, name?: string }>} [upload] to the input folder
 */

export class Director {
  /** @param {DirectorHost} host @param {(sentence: string) => void} say */
  constructor(host, say) {
    this.host = host
    this.say = say
    /** @type {TakeState | null} */
    this._take = null
    this._field = element('input', 'direct-field')
    Object.assign(this._field, { type: 'text', placeholder: words('field') })
    this._field.setAttribute('aria-label', words('field'))
    this._from = element('input', 'direct-from')
    Object.assign(this._from, { type: 'number', placeholder: words('next') })
    this._picture = element('input')
    Object.assign(this._picture, { type: 'file', accept: 'image/*', hidden: true })
    this._picture.onchange = () => void this._anchor(this._picture.files)
    this._undo = button(words('undo'), words('undoes'), 'undo')
    this._pause = button('', '', 'pause')
    const buttons = [
      button(words('send'), words('sends'), 'prompt'),
      button(words('picture'), words('pictures'), 'anchor'),
      this._undo,
      this._pause,
      button(words('stop'), words('stops'), 'stop')
    ]
    const from = element('label', 'direct-label', words('from'), this._from)
    this._waiting = element('div', 'direct-waiting')
    const line = element('div', 'direct-line', this._field, from, this._picture, ...buttons)
    this.root = element('div', 'direct', line, this._waiting)
    this.root.hidden = true
    // A picture that the page gets instead would open as a workflow; dropped words are the field's.
    this.root.ondragover = this.root.ondrop = (event) => {
      if (!event.dataTransfer?.types.includes('Files')) return
      event.preventDefault()
      event.stopPropagation()
      if (event.type === 'drop') void this._anchor(event.dataTransfer.files)
    }
    line.onclick = (event) => {
      const action = /** @type {HTMLElement} */ (event.target).closest('button')?.dataset.action
      if (action) void this._do(action)
    }
    line.onkeydown = (event) => {
      event.stopPropagation()
      if (event.key === 'Enter' && !event.isComposing && event.target instanceof HTMLInputElement) void this._do('prompt')
    }
  }

  /** @param {TakeState} take @param {number} chunk */
  _second(take, chunk) {
    return filmLength((chunk - take.first_chunk) * chunkSeconds(take))
  }

  /** @param {TakeState | null} take */
  show(take) {
    this._take = take
    const state = take?.directing
    this.root.hidden = !state?.live || !this.host.direct
    if (!take || !state?.live) return
    this._from.min = String(state.next_chunk + 1)
    this._undo.disabled = !state.pending.length
    const action = state.paused ? 'continue' : 'pause'
    Object.assign(this._pause, { textContent: words(action), title: words(`${action}s`) })
    this._pause.dataset.action = action
    const lines = state.pending.map(({ do: kind, chunk, text }) =>
      words('waits', { chunk: chunk + 1, second: this._second(take, chunk), text: text ?? words(kind) })
    )
    this._waiting.replaceChildren(...lines.map((text) => element('div', '', text)))
  }

  /** Somebody chose a chunk: the next prompt begins there if it can. @param {number} chunk */
  at(chunk) {
    if (chunk >= (this._take?.directing?.next_chunk ?? Infinity)) this._from.value = String(chunk + 1)
  }

  /** @param {string} action */
  async _do(action) {
    if (action === 'anchor') {
      this._picture.click()
      return
    }
    if (action !== 'prompt') {
      void this.direct({ do: action })
      return
    }
    const text = this._field.value.trim()
    const chunk = this._from.valueAsNumber - 1
    const next = this._take?.directing?.next_chunk ?? 0
    if (!text) this._field.focus()
    else if (chunk < next) this.say(words('begun', { chunk: next + 1 }))
    else if (await this.direct({ do: action, text, ...(chunk >= 0 ? { chunk } : {}) }))
      this._field.value = this._from.value = ''
  }

  /** The picture is the film's anchor from the next chunk on. @param {FileList | null} [files] */
  async _anchor(files) {
    const picture = files?.[0]
    if (!picture || !this.host.upload) return
    const { error, name } = await this.host.upload(picture)
    // So that the same picture can be chosen again.
    this._picture.value = ''
    if (error) this.say(error)
    else await this.direct({ do: 'anchor', image: name })
  }

  /** @param {object} direction @returns {Promise<boolean>} whether it was taken */
  async direct(direction) {
    const take = this._take
    if (!take || !this.host.direct) return false
    const { error, chunk } = await this.host.direct(take, direction)
    const settled = chunk === undefined ? '' : words('settled', { chunk: chunk + 1, second: this._second(take, chunk) })
    this.say(error ?? settled)
    return !error
  }
}
