// How a take goes, in words. Chunks, stages and steps are counted from 1.

import { finishedChunks } from './takes.js'

/** @typedef {import('./takes.js').TakeState} TakeState */

/** @type {Record<TakeState['status'], string>} */
export const STATUS = {
  running: 'rendering',
  finished: 'finished',
  interrupted: 'stopped',
  failed: 'failed',
  lost: 'ComfyUI is away'
}

/** @param {TakeState} take @returns {string} the one line that tells how far it is */
export function progressLine(take) {
  const done = finishedChunks(take)
  return `${done} of ${take.num_chunks} chunks, ${activity(take, done)}`
}

/** @param {TakeState} take @param {number} done */
function activity(take, done) {
  if (take.status !== 'running') return STATUS[take.status]
  const active = take.chunks.filter(({ state }) => state !== 'finished').at(-1)
  if (!active) return done < take.num_chunks ? STATUS.running : 'writing the file'
  const steps = active.state === 'sampling' && active.step
  const at = steps ? `stage ${(active.stage ?? 0) + 1}, step ${active.step} of ${active.total}` : active.state
  return `chunk ${active.chunk + 1}: ${at}`
}
