// @ts-check
// Rows for Helios Prompt Schedule (Text). The node's text stays the only data: the rows are read from the
// text, every edit writes the text, and nothing of the editor is saved with a workflow or sent to the server.

import { app } from '../../scripts/app.js'
import { findProblem, formatSchedule, parseSchedule } from './lib/schedule.js'
import { wordsOf } from './lib/texts.js'

/**
 * @typedef {import('./lib/schedule.js').Row} Row
 * @typedef {import('./lib/schedule.js').Problem} Problem
 * @typedef {{ name: string, value: any, callback?: Function, serialize?: boolean }} Widget
 * @typedef {any} GraphNode A LiteGraph node.
 */

const NODE = 'HeliosPromptScheduleText'
const SECONDS_PER_CHUNK = 33 / 24
const NEW_ROW_AFTER = 7
const ROWS_SHOWN = 4
const [ROW_HEIGHT, FRAME_HEIGHT] = [52, 62]
const FIRST_SIZE = [440, 520]

const words = wordsOf('schedule')

const STYLE = `
.helios-schedule { display: flex; flex-direction: column; gap: 4px; box-sizing: border-box; height: 100%; min-height: 0;
  padding: 6px; border: 1px solid var(--border-color); border-radius: 6px; color: var(--input-text);
  background: var(--comfy-menu-bg); font: 12px/1.35 Inter, system-ui, sans-serif;
  > .rows { display: flex; flex-direction: column; gap: 4px; flex: 1 1 auto; min-height: 0;
    overflow-y: auto; }
  .row { display: grid; grid-template-columns: 14px 48px 58px minmax(60px, 1fr) 20px; gap: 4px; }
  .head { color: var(--descrip-text); font-size: 11px; }
  :is(input, textarea) { box-sizing: border-box; width: 100%; margin: 0; padding: 3px 5px;
    border: 1px solid transparent; border-radius: 4px; color: inherit; background: var(--comfy-input-bg);
    font: inherit; }
  input { height: 24px; }
  textarea { min-height: 48px; max-height: 160px; resize: none; field-sizing: content; }
  :focus-visible { outline: none; border-color: #6aa9ff; }
  button { align-self: start; padding: 0; border: 1px solid transparent; border-radius: 4px; color: var(--descrip-text);
    background: none; font: inherit; line-height: 22px; cursor: pointer; }
  button:hover { color: var(--input-text); background: var(--comfy-input-bg); }
  .move { cursor: grab; touch-action: none; user-select: none; }
  .row.moving { opacity: 0.5; }
  .row.above { box-shadow: 0 -2px #6aa9ff; }
  .row.below { box-shadow: 0 2px #6aa9ff; }
  .row.wrong .first { border-color: #d9a441; }
  .row.empty textarea { border-color: #d9a441; }
  .foot { display: flex; align-items: center; gap: 6px; color: var(--descrip-text); }
  .foot button { padding: 0 6px; }
  [role=status] { margin: 0; padding: 4px 6px; border-left: 3px solid #d9a441; border-radius: 2px;
    color: var(--input-text); background: var(--comfy-input-bg); }
  [hidden] { display: none; }
}`

/**
 * @template {keyof HTMLElementTagNameMap} K
 * @param {K} tag @param {Record<string, any>} [properties] @param {(Node | string)[]} children
 */
function element(tag, properties = {}, ...children) {
  const made = Object.assign(document.createElement(tag), properties)
  if (properties.title) made.setAttribute('aria-label', properties.title)
  made.append(...children)
  return made
}

/** The rows of one node. Listeners sit on its own elements only, and go with them. */
class ScheduleEditor {
  /** @param {GraphNode} node @param {Widget} text */
  constructor(node, text) {
    this.node = node
    this.text = text
    /** @type {Row[]} */
    this.rows = []
    this.shown = ''
    this.writing = false
    this.list = element('div', { className: 'rows' })
    this.message = element('p', { hidden: true })
    this.message.setAttribute('role', 'status')
    this.add = element('button', { type: 'button', onclick: () => this.addRow() })
    this.foot = element('div', { className: 'foot' }, this.add)
    this.element = element('div', { className: 'helios-schedule' }, this.list, this.message, this.foot)
    // Rows were left as typed; what they became is shown once the editor is left.
    this.element.addEventListener('focusout', (event) => {
      if (!this.element.contains(/** @type {Node | null} */ (event.relatedTarget))) this.read()
    })
  }

  // On undo the Vue renderer keeps showing the element of the node's earlier self.
  replaceStale() {
    for (const shown of document.querySelectorAll('.helios-schedule')) {
      const old = owners.get(shown)
      if (old && old !== this.node && String(old.id) === String(this.node.id) && old.graph?.getNodeById(old.id) !== old)
        shown.replaceWith(this.element)
    }
  }

  // Room for some rows; more scroll.
  height() {
    return FRAME_HEIGHT + Math.max(2, Math.min(ROWS_SHOWN, this.rows.length)) * ROW_HEIGHT
  }

  /** Shows what the node's plain inputs hold. */
  read() {
    if (this.writing) return
    const text = String(this.text.value ?? '')
    const linked = this.node.inputs?.some((/** @type {any} */ slot) => slot.widget?.name === this.text.name && slot.link != null)
    const rows = linked ? null : parseSchedule(text)
    // Elements that still fit stay: one of them may be about to take the focus.
    if (JSON.stringify(rows ?? []) !== this.shown) this.show(rows ?? [])
    this.list.hidden = this.foot.hidden = !rows
    this.add.textContent = words('add')
    this.tell(linked ? { row: -1, key: 'linked', values: {} } : findProblem(text, rows))
  }

  /** @param {Row[]} rows */
  show(rows) {
    this.rows = rows
    this.shown = JSON.stringify(rows)
    const head = ['', words('chunk'), words('seconds'), words('prompt')].map((name) => element('span', {}, name))
    this.list.replaceChildren(element('div', { className: 'row head' }, ...head), ...rows.map(this.rowElement, this))
  }

  /** @param {Row} row @param {number} i */
  rowElement(row, i) {
    const move = element('button', { type: 'button', className: 'move', textContent: '⠿', title: words('move') })
    move.onpointerdown = (event) => this.drag(event, i)
    move.onkeydown = (event) => {
      const by = { ArrowUp: -1, ArrowDown: 1 }[event.key]
      if (!by) return
      event.preventDefault()
      this.movePrompt(i, i + by, true)
    }
    const first = element('input', { type: 'number', min: 0, step: 1, className: 'first', title: words('chunk') })
    const seconds = element('input', { type: 'number', min: 0, className: 'seconds', title: words('seconds_hint') })
    seconds.step = String(SECONDS_PER_CHUNK)
    const setFirst = (/** @type {number} */ chunk) => {
      if (Number.isFinite(chunk)) row.first = Math.max(0, Math.round(chunk))
      first.value = String(row.first)
      seconds.value = (row.first * SECONDS_PER_CHUNK).toFixed(1)
    }
    setFirst(row.first)
    first.onchange = () => (setFirst(first.valueAsNumber), this.write())
    seconds.onchange = () => (setFirst(seconds.valueAsNumber / SECONDS_PER_CHUNK), this.write())
    const prompt = element('textarea', { rows: 2, value: row.prompt, title: words('prompt') })
    prompt.oninput = () => {
      row.prompt = prompt.value
      this.write()
    }
    const remove = element('button', { type: 'button', textContent: '×', title: words('remove') })
    remove.disabled = this.rows.length === 1
    remove.onclick = () => this.change(() => this.rows.splice(i, 1))
    return element('div', { className: 'row' }, move, first, seconds, prompt, remove)
  }

  /** @param {Problem | null} problem */
  tell(problem) {
    this.message.hidden = !problem
    this.message.textContent = problem ? words(problem.key, problem.values) : ''
    this.list.querySelectorAll('.row:not(.head)').forEach((row, i) => {
      row.classList.toggle('wrong', problem?.row === i && problem.key !== 'empty')
      row.classList.toggle('empty', problem?.row === i && problem.key === 'empty')
    })
  }

  /** Puts the rows into the node's text; they stay on screen as they are. */
  write() {
    this.writing = true
    try {
      this.text.value = formatSchedule(this.rows)
      this.text.callback?.(this.text.value)
    } finally {
      this.writing = false
    }
    this.shown = JSON.stringify(this.rows)
    this.tell(findProblem(String(this.text.value), this.rows))
  }

  /** @param {() => void} edit changes the rows. */
  change(edit) {
    edit()
    this.write()
    this.show(this.rows)
    this.read()
  }

  addRow() {
    this.change(() => this.rows.push({ first: this.rows[this.rows.length - 1].first + NEW_ROW_AFTER, prompt: '' }))
    this.focus('textarea', this.rows.length - 1)
  }

  /**
   * Moves a prompt among the rows; the chunks at which rows begin stay where they are.
   * @param {number} from @param {number} to @param {boolean} [focus]
   */
  movePrompt(from, to, focus = false) {
    if (to < 0 || to >= this.rows.length || to === from) return
    this.change(() => {
      const prompts = this.rows.map(({ prompt }) => prompt)
      prompts.splice(to, 0, ...prompts.splice(from, 1))
      this.rows = this.rows.map((row, i) => ({ ...row, prompt: prompts[i] }))
    })
    if (focus) this.focus('.move', to)
  }

  /** @param {string} part @param {number} row */
  focus(part, row) {
    const parts = /** @type {NodeListOf<HTMLElement>} */ (this.list.querySelectorAll(part))
    parts[row].focus()
  }

  /** @param {PointerEvent} event @param {number} from */
  drag(event, from) {
    const handle = /** @type {HTMLElement} */ (event.currentTarget)
    const places = [...this.list.querySelectorAll('.row:not(.head)')]
    handle.setPointerCapture(event.pointerId)
    places[from].classList.add('moving')
    handle.onpointermove = ({ clientY }) => {
      const over = this.placeAt(places, clientY)
      places.forEach((place, i) => {
        place.classList.toggle('above', i === over && over < from)
        place.classList.toggle('below', i === over && over > from)
      })
    }
    handle.onpointerup = ({ clientY }) => this.movePrompt(from, this.placeAt(places, clientY))
    // However it ended: the marks go with the elements.
    handle.onlostpointercapture = () => this.show(this.rows)
  }

  /** @param {Element[]} places @param {number} y */
  placeAt(places, y) {
    const below = places.findIndex((place) => y < place.getBoundingClientRect().bottom)
    return below < 0 ? places.length - 1 : below
  }
}

/** @type {WeakMap<Element, GraphNode>} */
const owners = new WeakMap()

/**
 * Calls `more` after what `object[name]` already does.
 * @param {any} object @param {string} name @param {() => void} more
 */
function after(object, name, more) {
  const before = object[name]
  object[name] = function (/** @type {any[]} */ ...values) {
    before?.apply(this, values)
    more()
  }
}

app.registerExtension({
  name: 'Helios.ScheduleEditor',

  setup() {
    document.head.append(element('style', { textContent: STYLE }))
  },

  /** @param {GraphNode} node */
  nodeCreated(node) {
    if (node.comfyClass !== NODE) return
    const text = node.widgets.find((/** @type {Widget} */ widget) => widget.name === 'text')
    const editor = new ScheduleEditor(node, text)
    owners.set(editor.element, node)
    const options = { serialize: false, hideOnZoom: false, hideInPanel: true, getMinHeight: () => editor.height() }
    const widget = node.addDOMWidget('schedule', 'HELIOS_SCHEDULE', editor.element, options)
    widget.serialize = false
    const read = () => editor.read()
    after(text, 'callback', read)
    after(node, 'onConnectionsChange', read)
    after(node, 'onConfigure', read)
    after(node, 'onAdded', () => editor.replaceStale())
    editor.read()
    node.setSize([Math.max(node.size[0], FIRST_SIZE[0]), Math.max(node.size[1], FIRST_SIZE[1])])
  },
})
