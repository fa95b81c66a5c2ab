// The page's one list of takes, fed by ComfyUI's websocket, and what its widgets ask of the server.

import { api } from '../../../scripts/api.js'
import { app } from '../../../scripts/app.js'
import { Takes } from './takes.js'
import { speak, words } from './texts.js'

/** @typedef {import('./takes.js').TakeState} TakeState */

export const takes = new Takes(async () => {
  try {
    const response = await api.fetchApi('/helios/takes')
    return response.status === 200 ? await response.json() : null
  } catch {
    // The server is away; the page asks again when it is back.
    return null
  }
})

speak(() => String(app.extensionManager?.setting?.get('Comfy.Locale') ?? 'en'))

/** @param {{ id: string, rolls?: number }} take @param {number} chunk @param {'thumbnail' | 'video'} part */
export const partAddress = (take, chunk, part) =>
  // A chunk that was made again has another picture.
  api.apiURL(`/helios/takes/${take.id}/${chunk}/${part}${take.rolls ? `?${take.rolls}` : ''}`)

/** @param {TakeState} take */
const filmAddress = (take) => api.apiURL(`/view?${new URLSearchParams({ ...take.film })}`)

/** @param {{ id: string }} take */
const streamAddress = (take) => api.apiURL(`/helios/takes/${take.id}/stream.m3u8`)

/** @param {string} address @returns {Promise<boolean>} */
async function exists(address) {
  try {
    return (await fetch(address, { method: 'HEAD' })).status === 200
  } catch {
    return false
  }
}

/** @param {{ id: string }} take @returns {Promise<{ prompt: object, workflow: object | null } | null>} as queued */
export async function queuedGraph(take) {
  const response = await api.fetchApi(`/helios/takes/${take.id}/queued`)
  return response.status === 200 ? response.json() : null
}

/**
 * Queues a take as it was queued: the store has its finished chunks, so it goes on at the first missing one.
 * @param {{ id: string }} take
 * @returns {Promise<string>} what to say about it
 */
export async function resumeTake(take) {
  const queued = await queuedGraph(take)
  if (!queued) return words('queue_again')
  const refusal = await queueGraph(queued.prompt, queued.workflow)
  return refusal || words('continued')
}

/**
 * Directs a take that is being made, or asks how it is directed; see nodes/live/direct_routes.py.
 * @param {TakeState} take
 * @param {object} [direction]
 * @returns {Promise<import('./director.js').Answer>}
 */
async function direct(take, direction) {
  const headers = { 'Content-Type': 'application/json' }
  const body = JSON.stringify({ version: 1, ...direction })
  try {
    const response = await api.fetchApi(`/helios/takes/${take.id}/direct`, direction && { method: 'POST', headers, body })
    const told = await response.json()
    const state = direction ? told.state : told
    if (state) takes.direct(take, state)
    return told
  } catch (error) {
    return { error: String(error) }
  }
}

/**
 * Puts a picture into the input folder, where core puts those of Load Image.
 * @param {File} picture
 * @returns {Promise<{ error?: string, name?: string }>} the name it got there
 */
async function upload(picture) {
  const body = new FormData()
  body.append('image', picture)
  try {
    const response = await api.fetchApi('/upload/image', { method: 'POST', body })
    return response.ok ? await response.json() : { error: words('not_uploaded', { name: picture.name, status: response.status }) }
  } catch (error) {
    return { error: String(error) }
  }
}

/**
 * Deletes a take from the store.
 * @param {{ id: string }} take
 * @returns {Promise<string | void>} why it stays
 */
export async function deleteTake(take) {
  const response = await api.fetchApi(`/helios/takes/${take.id}`, { method: 'DELETE' })
  if (response.status === 200) {
    takes.forget(take.id)
    return undefined
  }
  return response.status === 204 ? words('gone') : (await response.json()).error
}

/** What every strip asks of the page. */
export const stripHost = { address: partAddress, filmAddress, streamAddress, exists, resume: resumeTake, direct, upload }

/** Queues a graph in API format. @param {object} prompt @param {object | null} workflow @returns {Promise<string>} why not */
export async function queueGraph(prompt, workflow) {
  try {
    await api.queuePrompt(0, { output: prompt, workflow: workflow ?? {} })
    return ''
  } catch (error) {
    return words('refused', { error: error instanceof Error ? error.message : String(error) })
  }
}

app.registerExtension({
  name: 'Helios.Takes',
  setup() {
    takes.subscribe((kind, take) => {
      if (kind === 'take' && take.live && take.status === 'running') void direct(take)
    })
    api.addEventListener('helios.take', (event) => takes.receive(event.detail))
    api.addEventListener('reconnecting', () => takes.lose())
    api.addEventListener('reconnected', () => void takes.refresh())
  }
})
