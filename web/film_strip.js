// Film strip of Helios Chunk Chain and Helios Render Video: shows the take that the node renders, chunk by chunk.
// Events and routes are documented in nodes/live/events.py and nodes/live/routes.py.

import { api } from '../../scripts/api.js'
import { app } from '../../scripts/app.js'
import { randomSeed, withSeedChange } from './lib/seeds.js'
import { FilmStrip } from './lib/strip.js'
import { addStripStyle } from './lib/strip_style.js'

/** @typedef {import('./lib/strip.js').TakeState} TakeState */
/** @typedef {import('./lib/strip.js').ChunkState} ChunkState */
/** @typedef {import('./lib/strip.js').Progress} Progress */
/**
 * A helios.take event of any kind.
 * @typedef {object} TakeEvent
 * @property {'start' | 'chunk' | 'end'} kind
 * @property {number} version
 * @property {string} id
 * @property {TakeState} take of "start"
 * @property {ChunkState} chunk of "chunk"
 * @property {Progress} progress of "chunk" and "end"
 * @property {TakeState['status']} status of "end"
 * @property {string} message of "end"
 */

const NODES = ['HeliosChunkChain', 'HeliosRenderVideo']
const EVENT = 'helios.take'
const VERSION = 1
const KNOWN_TAKES = 16
const MARGIN = 6
// The frontend's own widgets under a node: the film, a picture.
const SHOWN = ['video-preview', '$$canvas-image-preview']

/** @type {WeakMap<ComfyNode, FilmStrip>} */
const strips = new WeakMap()
/** @type {WeakMap<Element, ComfyNode>} */
const owners = new WeakMap()
/** Takes of this page's workflows and of others', oldest first. @type {Map<string, TakeState>} */
const takes = new Map()
/** @type {Promise<void> | null} */
let refreshing = null

/** @param {TakeState} take @returns {ComfyNode | undefined} the open workflow's node that renders it */
function nodeOf(take) {
  if (!take.workflow || take.workflow !== app.rootGraph.id) return undefined
  /** @type {ComfyGraph | undefined} */
  let graph = app.rootGraph
  /** @type {ComfyNode | null | undefined} */
  let node
  for (const id of take.node.split(':')) {
    node = graph?.getNodeById(id)
    graph = node?.subgraph
  }
  return node ?? undefined
}

/** @param {TakeState} take @returns {FilmStrip | undefined} */
function stripOf(take) {
  const node = nodeOf(take)
  return node && strips.get(node)
}

/**
 * Takes away what the frontend shows under the node, before a take and before its film's name arrives. The frontend
 * decides by a node's last output what its previews are: it would load a second take's pictures as films, and the
 * last picture in place of the finished film.
 * @param {TakeState} take
 */
function clearShown(take) {
  const node = nodeOf(take)
  if (!node?.graph) return
  const locator = node.graph === app.rootGraph ? String(node.id) : `${node.graph.id}:${node.id}`
  delete app.nodeOutputs[locator]
  delete app.nodePreviewImages[locator]
  node.imgs = node.videoContainer = node.previewMediaType = undefined
  for (const widget of node.widgets?.filter(({ name }) => SHOWN.includes(name)) ?? []) node.removeWidget(widget)
}

/** @param {TakeState} take */
function remember(take) {
  takes.delete(take.id)
  takes.set(take.id, take)
  for (const id of takes.keys()) {
    if (takes.size <= KNOWN_TAKES) break
    takes.delete(id)
  }
}

/** Asks the server for all takes, as after a reload, and shows those of the open workflow. */
async function refresh() {
  refreshing ??= load().finally(() => {
    refreshing = null
  })
  await refreshing
}

async function load() {
  /** @type {{version: number, takes: TakeState[]}} */
  let answer
  try {
    const response = await api.fetchApi('/helios/takes')
    if (response.status !== 200) return
    answer = await response.json()
  } catch {
    // The server is away; the page asks again when it is back.
    return
  }
  if (answer.version !== VERSION) return
  for (const take of answer.takes) {
    remember(take)
    stripOf(take)?.show(take)
  }
}

/** @param {TakeEvent} event */
function receive(event) {
  if (event?.version !== VERSION) return
  if (event.kind === 'start') {
    remember(event.take)
    clearShown(event.take)
    stripOf(event.take)?.show(event.take)
    return
  }
  const take = takes.get(event.id)
  if (!take) {
    // It began before this page did. One that stays unknown has nothing to show here.
    void refresh()
    return
  }
  take.progress = event.progress
  if (event.kind === 'end') {
    take.status = event.status
    take.message = event.message
    if (take.status === 'finished') clearShown(take)
    stripOf(take)?.end()
    return
  }
  const index = take.chunks.findIndex((chunk) => chunk.chunk === event.chunk.chunk)
  if (index < 0) take.chunks.push(event.chunk)
  else take.chunks[index] = event.chunk
  stripOf(take)?.change(event.chunk)
}

/** @param {string} address @returns {Promise<boolean>} */
async function exists(address) {
  try {
    return (await fetch(address, { method: 'HEAD' })).status === 200
  } catch {
    return false
  }
}

/** @param {ComfyNode} node @param {string} name @returns {ComfyWidget | undefined} unless another node decides it */
function ownWidget(node, name) {
  const linked = node.inputs?.some((input) => input.widget?.name === name && input.link != null)
  return linked ? undefined : node.widgets?.find((widget) => widget.name === name)
}

/** @param {ComfyWidget} widget @param {string | number} value */
function setWidget(widget, value) {
  widget.value = value
  widget.callback?.(value)
}

/**
 * Queues the node's take once more with another seed from `chunk` on.
 * @param {ComfyNode} node
 * @param {TakeState} take
 * @param {number} chunk
 * @returns {string} what the strip says about it
 */
function redo(node, take, chunk) {
  const widget = ownWidget(node, 'seed_changes')
  if (!widget) return 'seed_changes is connected to another node; change it there.'
  const text = withSeedChange(String(widget.value ?? ''), chunk, randomSeed())
  if (text === null) return "seed_changes cannot be read; write it like '7: 123', or empty it."
  setWidget(widget, text)
  // A seed that changes after each queue would otherwise change the chunks before as well.
  const seed = ownWidget(node, 'seed')
  if (seed && Number.isSafeInteger(take.seed) && seed.value !== take.seed) setWidget(seed, take.seed)
  void app.queuePrompt(0, 1)
  return `Queued again from chunk ${chunk} on, with another seed.`
}

/**
 * On undo the new design keeps showing the element of the node's earlier self.
 * @param {ComfyNode} node
 * @param {HTMLElement} element
 */
function replaceStale(node, element) {
  for (const shown of document.querySelectorAll('.helios-strip')) {
    const old = owners.get(shown)
    const gone = old && old !== node && String(old.id) === String(node.id) && old.graph?.getNodeById(old.id) !== old
    if (gone) shown.replaceWith(element)
  }
}

/** @param {ComfyNode} node */
function addStrip(node) {
  const strip = new FilmStrip({
    address: (take, chunk, part) => api.apiURL(`/helios/takes/${take.id}/${chunk}/${part}`),
    exists,
    redo: (take, chunk) => redo(node, take, chunk),
    resized: () => node.graph?.setDirtyCanvas(true, true)
  })
  const widget = node.addDOMWidget('film_strip', 'helios_film_strip', strip.root, {
    serialize: false,
    hideOnZoom: false,
    hideInPanel: true,
    margin: MARGIN,
    getMinHeight: () => strip.height + 2 * MARGIN,
    getMaxHeight: () => strip.height + 2 * MARGIN
  })
  // The option keeps it out of the queued graph, the property out of saved workflows.
  widget.serialize = false
  const remove = widget.onRemove
  widget.onRemove = function () {
    strip.dispose()
    remove?.call(this)
  }
  strips.set(node, strip)
  owners.set(strip.root, node)
  const added = node.onAdded
  node.onAdded = function (/** @type {any[]} */ ...values) {
    added?.apply(this, values)
    replaceStale(node, strip.root)
  }
}

app.registerExtension({
  name: 'Helios.FilmStrip',
  setup() {
    addStripStyle()
    api.addEventListener(EVENT, (event) => receive(event.detail))
    api.addEventListener('reconnected', () => void refresh())
  },
  nodeCreated(node) {
    if (NODES.includes(node.comfyClass ?? '')) addStrip(node)
  },
  afterConfigureGraph() {
    void refresh()
  }
})
