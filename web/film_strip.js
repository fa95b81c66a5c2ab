// Film strip of Helios Chunk Chain, Render Video, Live Video and Farm Render: brings together the page's takes, the
// node's plan and the strip that draws both.

import { api } from '../../scripts/api.js'
import { app } from '../../scripts/app.js'
import { addStyle } from './lib/dom.js'
import { enlarge } from './lib/enlarged.js'
import { deleteTake, queueGraph, stripHost, takes } from './lib/page.js'
import { ownWidget, planOf, setWidget, writeRows } from './lib/plan.js'
import { versionGraph, versionsOf } from './lib/rolls.js'
import { randomSeed, withSeedChange } from './lib/seeds.js'
import { FilmStrip, STRIP_HEIGHT } from './lib/strip.js'
import { words } from './lib/texts.js'

/** @typedef {import('./lib/takes.js').TakeState} TakeState */
/** @typedef {import('./lib/versions.js').Version} Version */

const LIVE = 'HeliosLiveVideo'
const FARM = 'HeliosFarmRender'
const NODES = ['HeliosChunkChain', 'HeliosRenderVideo', LIVE, FARM]
const MARGIN = 6
const FIRST_WIDTH = 360
const DIRECTOR_HEIGHT = 80

/** @type {WeakMap<ComfyNode, FilmStrip>} */
const strips = new WeakMap()
/** @type {WeakMap<Element, ComfyNode>} */
const owners = new WeakMap()

/** @param {string} path "3", in a subgraph "12:3" @returns {ComfyNode | undefined} in the open workflow */
function nodeAt(path) {
  /** @type {ComfyGraph | undefined} */
  let graph = app.rootGraph
  /** @type {ComfyNode | null | undefined} */
  let node
  for (const id of path.split(':')) {
    node = graph?.getNodeById(id)
    graph = node?.subgraph
  }
  return node ?? undefined
}

/** @param {TakeState} take @returns {FilmStrip | undefined} of the open workflow's node that renders it */
function stripOf(take) {
  const node = take.workflow && take.workflow === app.rootGraph.id ? nodeAt(take.node) : undefined
  return node && strips.get(node)
}

/** @returns {FilmStrip[]} those on the page */
function shownStrips() {
  const nodes = [...document.querySelectorAll('.helios-strip')].map((shown) => owners.get(shown))
  return nodes.flatMap((node) => (node && strips.get(node)) ?? [])
}

/**
 * Queues the node's take once more with another seed from `chunk` on.
 * @param {ComfyNode} node
 * @param {TakeState} take
 * @param {number} chunk
 * @returns {string} what the strip says about it
 */
function redo(node, take, chunk) {
  const refusal = changeSeed(node, take, chunk, randomSeed())
  if (refusal) return refusal
  void app.queuePrompt(0, 1)
  return words('redone', { chunk: chunk + 1 })
}

/**
 * Lets the film go on from another seed.
 * @param {ComfyNode} node
 * @param {TakeState} take
 * @param {number} chunk
 * @param {number | string} changed
 * @returns {string} why it cannot be
 */
function changeSeed(node, take, chunk, changed) {
  const widget = ownWidget(node, 'seed_changes')
  if (!widget) return words('linked')
  const text = withSeedChange(String(widget.value ?? ''), chunk, changed)
  if (text === null) return words('unreadable')
  setWidget(widget, text)
  // A seed that changes after each queue would otherwise change the chunks before as well.
  const seed = ownWidget(node, 'seed')
  if (seed && Number.isSafeInteger(take.seed) && seed.value !== take.seed) setWidget(seed, take.seed)
  return ''
}

/**
 * Queues more versions of a chunk.
 * @param {TakeState} take
 * @param {number} chunk
 * @param {number} count
 * @returns {Promise<string>} what the strip says about it
 */
async function roll(take, chunk, count) {
  const { output, workflow } = await app.graphToPrompt()
  for (let version = 0; version < count; version++) {
    const refusal = await queueGraph(versionGraph(output, take, chunk), workflow)
    if (refusal) return refusal
  }
  return words('rolled', { count, chunk: chunk + 1 })
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

/** What a strip may change of a film whose workflow decides all of it. @param {ComfyNode} node */
const changes = (node) => ({
  writeRows: (/** @type {[number, string][]} */ rows) => writeRows(node, rows),
  versions: (/** @type {TakeState} */ take, /** @type {number} */ chunk) => versionsOf(take, chunk, takes.all()),
  // Versions are made into the store alone, which a farm cannot.
  roll: node.comfyClass === FARM ? undefined : roll,
  pick: (/** @type {TakeState} */ take, /** @type {number} */ chunk, /** @type {Version} */ version) => {
    const refusal = changeSeed(node, take, chunk, version.seed)
    if (!refusal) void app.queuePrompt(0, 1)
    return refusal || words('picked', { chunk: chunk + 1 })
  },
  clear: async (/** @type {TakeState[]} */ spares) => {
    for (const take of spares) await deleteTake(take)
  }
})

/** @param {ComfyNode} node */
function addStrip(node) {
  const strip = new FilmStrip({
    ...stripHost,
    plan: () => planOf(node),
    // A live film's chunks are rolled again by its director, while it lives.
    ...(node.comfyClass === LIVE ? {} : { redo: (take, chunk) => redo(node, take, chunk), ...changes(node) }),
    enlarge
  })
  const widget = node.addDOMWidget('film_strip', 'helios_film_strip', strip.root, {
    serialize: false,
    hideOnZoom: false,
    hideInPanel: true,
    margin: MARGIN,
    getMinHeight: () => STRIP_HEIGHT + (node.comfyClass === LIVE ? DIRECTOR_HEIGHT : 0) + 2 * MARGIN
  })
  // The option keeps it out of the queued graph, the property out of saved workflows.
  widget.serialize = false
  const remove = widget.onRemove
  widget.onRemove = function () {
    strip.dispose()
    remove?.call(this)
  }
  // The strip shows films and previews: neither design is to show them once more below it.
  node.hideOutputImages = true
  node.onDrawBackground = () => {}
  strips.set(node, strip)
  owners.set(strip.root, node)
  const added = node.onAdded
  node.onAdded = function (/** @type {any[]} */ ...values) {
    added?.apply(this, values)
    replaceStale(node, strip.root)
    strip.planned()
  }
  node.setSize([Math.max(node.size[0], FIRST_WIDTH), node.size[1]])
}

app.registerExtension({
  name: 'Helios.FilmStrip',
  setup() {
    addStyle('strip.css')
    takes.subscribe((kind, take, chunk) => {
      const strip = stripOf(take)
      if (take.store_only) strip?.versions.refresh()
      else if (kind === 'take') strip?.show(take)
      else if (strip?.take?.id !== take.id) return
      else if (kind === 'chunk' && chunk) strip.change(chunk)
      else if (kind === 'directed') strip.show(take)
      else strip.end()
    })
    api.addEventListener('graphChanged', () => {
      for (const strip of shownStrips()) strip.planned()
    })
    api.addEventListener('b_preview_with_metadata', ({ detail }) => {
      const node = nodeAt(String(detail.displayNodeId))
      const strip = node && strips.get(node)
      if (strip) showPreview(strip, detail.blob)
    })
  },
  nodeCreated(node) {
    if (NODES.includes(node.comfyClass ?? '')) addStrip(node)
  },
  afterConfigureGraph() {
    void takes.refresh()
  }
})

let preview = ''

/** @param {FilmStrip} strip @param {Blob} blob */
function showPreview(strip, blob) {
  const last = preview
  preview = URL.createObjectURL(blob)
  strip.live(preview)
  if (last) URL.revokeObjectURL(last)
}
