// How a take goes, in words. Chunks, stages and steps are counted from 1.

import { finishedChunks } from './takes.js'
import { words } from './texts.js'

/** @typedef {import('./takes.js').TakeState} TakeState */

/** @param {TakeState['status']} status */
export const statusText = (status) => words(status === 'running' ? 'rendering' : status)

/** @param {TakeState} take @returns {string} the one line that tells how far it is */
export function progressLine(take) {
  const done = finishedChunks(take)
  return words('progress', { done, count: take.num_chunks, activity: activity(take, done) })
}

/** @param {TakeState} take @param {number} done */
function activity(take, done) {
  if (take.status !== 'running') return statusText(take.status)
  const active = take.chunks.filter(({ state }) => state !== 'finished').at(-1)
  if (!active) return done < take.num_chunks ? statusText('running') : words('writing')
  const { state, stage, step, total } = active
  const steps = state === 'sampling' && step
  const at = steps ? words('steps', { stage: (stage ?? 0) + 1, step, total: total ?? 0 }) : words(state)
  return words('at_work', { chunk: active.chunk + 1, at })
}
