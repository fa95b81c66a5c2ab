// Helios Load Model says what it loads and what is missing, and downloads it. Routes and events are documented in
// nodes/live/model_routes.py and nodes/live/downloads.py; nothing of this is saved with a workflow.

import { api } from '../../scripts/api.js'
import { app } from '../../scripts/app.js'
import { isSmall, randomWeights, sizeOf, stateText, words } from './lib/model_texts.js'

/** @typedef {import('./lib/model_texts.js').Model} Model */
/** @typedef {import('./lib/model_texts.js').Download} Download */

const NODE = 'HeliosLoadModel'
const EVENT = 'helios.download'
const LOWEST = 126
const FIRST_WIDTH = 380

const STYLE = `
.helios-model { display: flex; flex-direction: column; gap: 6px; box-sizing: border-box; height: 100%; min-height: 0;
  padding: 8px; border: 1px solid var(--border-color); border-radius: 6px; overflow-y: auto; color: var(--input-text);
  background: var(--comfy-menu-bg); font: 12px/1.4 Inter, system-ui, sans-serif;
  p { margin: 0; overflow-wrap: anywhere; }
  .missing, .state { color: var(--descrip-text); }
  .failed { color: var(--error-text); }
  progress { width: 100%; height: 8px; accent-color: #6aa9ff; }
  button { align-self: start; padding: 4px 10px; border: 1px solid var(--border-color); border-radius: 4px;
    color: var(--input-text); background: var(--comfy-input-bg); font: inherit; cursor: pointer; }
  button:hover { border-color: #6aa9ff; }
  button:focus-visible { outline: 2px solid #6aa9ff; }
  [hidden] { display: none; } }`

/** What each choice loads, by choice. @type {Record<string, Model>} */
let models = {}
/** By variant. @type {Record<string, Download>} */
let downloads = {}
/** Panels of nodes that are in a graph. @type {Set<ModelPanel>} */
const panels = new Set()

/** Asks the server what is there now. */
async function refresh() {
  const answer = await api.fetchApi('/helios/models', { cache: 'no-store' })
  if (!answer.ok) return
  ;({ models, downloads } = await answer.json())
  for (const panel of panels) panel.show()
}

/** @param {string} variant @param {'download' | 'stop'} what */
async function ask(variant, what) {
  // The event tells what became of it: the answer may be older.
  await api.fetchApi(`/helios/models/${variant}/${what}`, { method: 'POST' })
}

/** @param {Download} download */
function told(download) {
  if (!download.variant) return
  downloads[download.variant] = download
  for (const panel of panels) panel.show()
}

/**
 * @template {keyof HTMLElementTagNameMap} K
 * @param {K} tag @param {string} className
 * @returns {HTMLElementTagNameMap[K]}
 */
function element(tag, className) {
  return Object.assign(document.createElement(tag), { className })
}

/** What stands under one node's inputs. */
class ModelPanel {
  /** @param {ComfyNode} node @param {ComfyWidget} choice */
  constructor(node, choice) {
    this.node = node
    this.choice = choice
    this.uses = element('p', 'uses')
    this.missing = element('p', 'missing')
    this.bar = element('progress', 'bar')
    this.state = element('p', 'state')
    this.state.setAttribute('role', 'status')
    this.button = element('button', 'download')
    this.button.type = 'button'
    this.button.onclick = () => this.press()
    this.element = element('div', 'helios-model')
    this.element.append(this.uses, this.missing, this.bar, this.state, this.button)
  }

  /** @returns {{ model?: Model, download?: Download, running: boolean }} */
  now() {
    const model = models[String(this.choice.value)]
    const download = model?.wanted ? downloads[model.wanted.variant] : undefined
    return { model, download, running: download?.status === 'running' }
  }

  press() {
    const { model, running } = this.now()
    if (model?.wanted) ask(model.wanted.variant, running ? 'stop' : 'download')
  }

  show() {
    const { model, download, running } = this.now()
    const wanted = model?.wanted?.missing.length ? model.wanted : null
    const whole = model && !model.missing.length
    this.uses.textContent = !model ? '' : whole ? words('uses', { name: model.name, size: sizeOf(model) }) : ''
    if (whole && randomWeights(model)) this.uses.textContent += ` ${words('random')}`
    if (whole && isSmall(model)) this.uses.textContent += ` ${words('small')}`
    this.uses.hidden = !whole
    this.missing.textContent = lacks(model, wanted)
    this.missing.hidden = !this.missing.textContent
    this.bar.hidden = !running
    this.bar.max = download?.total || 1
    this.bar.value = download?.done ?? 0
    this.bar.setAttribute('aria-label', words('progress'))
    this.state.textContent = download && (wanted || running) ? stateText(download) : ''
    this.state.hidden = !this.state.textContent
    this.state.classList.toggle('failed', download?.status === 'failed')
    this.button.hidden = !wanted && !running
    this.button.textContent = running ? words('stop') : words('download', { name: wanted?.folder ?? '' })
    this.node.graph?.setDirtyCanvas(true, true)
  }
}

/** @param {Model | undefined} model @param {Model['wanted']} wanted */
function lacks(model, wanted) {
  if (wanted) {
    const gigabytes = (wanted.bytes / 1e9).toFixed(1)
    if (wanted.missing.includes('model_index.json')) return words('absent', { name: wanted.folder, gigabytes })
    return words('lacks', { name: wanted.folder, files: wanted.missing.slice(0, 3).join(', '), count: wanted.missing.length })
  }
  if (!model?.missing.length) return ''
  return words('lacks', { name: model.name, files: model.missing.slice(0, 3).join(', '), count: model.missing.length })
}

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
  name: 'Helios.LoadModel',

  setup() {
    const style = document.createElement('style')
    style.textContent = STYLE
    document.head.append(style)
    api.addEventListener(EVENT, ({ detail }) => {
      told(detail)
      if (detail.status !== 'finished') return
      // The new folder belongs into the lists of all loaders.
      app.refreshComboInNodes?.()
      refresh()
    })
    // The server may have been started again with other folders.
    api.addEventListener('reconnected', () => refresh())
  },

  // R, and whatever else reads the nodes' lists anew.
  refreshComboInNodes() {
    refresh()
  },

  /** @param {ComfyNode} node */
  nodeCreated(node) {
    if (node.comfyClass !== NODE) return
    const choice = node.widgets?.find(({ name }) => name === 'model')
    if (!choice) return
    const panel = new ModelPanel(node, choice)
    const options = { serialize: false, hideOnZoom: false, getMinHeight: () => LOWEST }
    const widget = node.addDOMWidget('status', 'HELIOS_MODEL', panel.element, options)
    widget.serialize = false
    const show = () => panel.show()
    after(choice, 'callback', show)
    after(node, 'onConfigure', show)
    after(node, 'onAdded', () => {
      panels.add(panel)
      refresh()
    })
    after(node, 'onRemoved', () => panels.delete(panel))
    show()
    node.setSize([Math.max(node.size[0], FIRST_WIDTH), node.size[1]])
  },
})
