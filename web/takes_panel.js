// The sidebar's tab of Helios takes: the panel, and what its buttons do.

import { api } from '../../scripts/api.js'
import { app } from '../../scripts/app.js'
import { addStyle } from './lib/dom.js'
import { enlarge } from './lib/enlarged.js'
import { deleteTake, partAddress, queuedGraph, resumeTake, stripHost, takes } from './lib/page.js'
import { TakesPanel } from './lib/panel.js'
import { FilmStrip } from './lib/strip.js'
import { words, wordsOf } from './lib/texts.js'

/** @typedef {import('./lib/takes.js').TakeState} TakeState */
/** @typedef {import('./lib/panel.js').Summary} Summary */
/** @typedef {import('./lib/panel.js').Library} Library */

/** @returns {Promise<Library | null>} */
async function list() {
  try {
    const response = await api.fetchApi('/helios/library')
    return response.status === 200 ? await response.json() : null
  } catch {
    return null
  }
}

/** @param {Summary} summary @returns {Promise<string | void>} */
async function open(summary) {
  const response = await api.fetchApi(`/helios/takes/${summary.id}`)
  if (response.status !== 200) return words('gone')
  /** @type {TakeState} */
  const take = (await response.json()).take
  const strip = new FilmStrip({ ...stripHost, enlarge })
  const end = takes.subscribe((kind, other, chunk) => {
    if (other.id !== take.id) return
    if (kind === 'chunk' && chunk) strip.change(chunk)
    else strip.show(other)
  })
  strip.show(take)
  enlarge(strip, () => {
    end()
    strip.dispose()
  })
  if (take.chunks.length) strip.choose(take.first_chunk, true)
  return undefined
}

/** @param {Summary} take @returns {Promise<string | void>} */
async function load(take) {
  const queued = await queuedGraph(take)
  if (!queued) return words('gone')
  if (queued.workflow) await app.loadGraphData(queued.workflow, true, true, take.name)
  else await app.loadApiJson(queued.prompt, take.name)
  return undefined
}

/** @type {TakesPanel | null} */
let panel = null

app.registerExtension({
  name: 'Helios.TakesPanel',
  setup() {
    addStyle('panel.css')
    takes.subscribe((kind) => {
      if (kind !== 'chunk' && panel?.root.isConnected) void panel.refresh()
    })
    app.extensionManager.registerSidebarTab({
      id: 'helios-takes',
      icon: 'pi pi-video',
      title: 'Helios',
      tooltip: wordsOf('panel')('title'),
      type: 'custom',
      render(/** @type {HTMLElement} */ element) {
        const picture = (/** @type {Summary} */ take, /** @type {number} */ chunk) => partAddress(take, chunk, 'thumbnail')
        panel ??= new TakesPanel({ list, picture, open, load, resume: resumeTake, remove: deleteTake })
        element.replaceChildren(panel.root)
        void panel.refresh()
      }
    })
  }
})
