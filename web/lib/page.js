// The page's one list of takes, fed by ComfyUI's websocket, and what its widgets ask of the server.

import { api } from '../../../scripts/api.js'
import { app } from '../../../scripts/app.js'
import { Takes } from './takes.js'

/** @typedef {import('./takes.js').TakeState} TakeState */

export const GONE = 'The store no longer has this take.'

export const takes = new Takes(async () => {
  try {
    const response = await api.fetchApi('/helios/takes')
    return response.status === 200 ? await response.json() : null
  } catch {
    // The server is away; the page asks again when it is back.
    return null
  }
})

/** @param {{ id: string }} take @param {number} chunk @param {'thumbnail' | 'video'} part */
export const partAddress = (take, chunk, part) => api.apiURL(`/helios/takes/${take.id}/${chunk}/${part}`)

/** @param {TakeState} take */
export const filmAddress = (take) => api.apiURL(`/view?${new URLSearchParams({ ...take.film })}`)

/** @param {string} address @returns {Promise<boolean>} */
export async function exists(address) {
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
  if (!queued) return `${GONE} Queue its workflow again.`
  const refusal = await queueGraph(queued.prompt, queued.workflow)
  return refusal || 'Queued: it goes on at the first missing chunk.'
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
  return response.status === 204 ? GONE : (await response.json()).error
}

/** Queues a graph in API format. @param {object} prompt @param {object | null} workflow @returns {Promise<string>} why not */
export async function queueGraph(prompt, workflow) {
  try {
    await api.queuePrompt(0, { output: prompt, workflow: workflow ?? {} })
    return ''
  } catch (error) {
    return `ComfyUI refused it: ${error instanceof Error ? error.message : error}`
  }
}

app.registerExtension({
  name: 'Helios.Takes',
  setup() {
    api.addEventListener('helios.take', (event) => takes.receive(event.detail))
    api.addEventListener('reconnecting', () => takes.lose())
    api.addEventListener('reconnected', () => void takes.refresh())
  }
})
