// What Helios Load Model says, in English and Chinese.

import { wordsOf } from './texts.js'

/**
 * What a choice loads.
 * @typedef {object} Model
 * @property {string} name the folder
 * @property {string | null} variant
 * @property {[number, number]} size width and height that it is made for
 * @property {string[]} missing files that the folder lacks
 * @property {{ folder: string, variant: string, missing: string[], bytes: number } | null} wanted
 */
/**
 * How far a download is.
 * @typedef {object} Download
 * @property {string} variant
 * @property {'running' | 'finished' | 'failed' | 'stopped'} status
 * @property {number} done bytes
 * @property {number} total bytes, 0 until the hub has answered
 * @property {string} message why it failed
 */

export const words = wordsOf('model')

/** @param {Model} model */
export function sizeOf(model) {
  return model.size.join(' x ')
}

/** @param {Model} model */
export function randomWeights(model) {
  return model.name.startsWith('helios-tiny-')
}

/** @param {Model} model */
export function isSmall(model) {
  return model.name.startsWith('helios-small-')
}

/** @param {Download} download */
export function stateText(download) {
  if (download.status === 'failed') return download.message
  if (download.status === 'running' && !download.total) return words('waiting')
  const [unit, size] = download.total < 1e9 ? ['MB', 1e6] : ['GB', 1e9]
  const [done, total] = [download.done, download.total].map((bytes) => `${(bytes / size).toFixed(1)} ${unit}`)
  return words(download.status, { done, total })
}
