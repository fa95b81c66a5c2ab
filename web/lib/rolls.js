// Versions of a chunk: what is queued for them, which of a page's takes they are, and what picking one writes.

import { randomSeed, withSeedChange } from './seeds.js'

/** @typedef {import('./takes.js').TakeState} TakeState */
/** @typedef {import('./versions.js').Version} Version */
/** @typedef {Record<string, { inputs: Record<string, any>, class_type: string }>} Graph in API format */

const LONGEST_NAME = 100

/** @param {TakeState} take @param {number} chunk the changes before it decide with it what came before */
const before = (take, chunk) =>
  JSON.stringify([take.seed, take.first_chunk, take.seed_changes.filter(([first]) => first < chunk), take.rows])

/** @param {TakeState} take @param {number} chunk @returns {string} the seed that is in force there */
const seedAt = (take, chunk) =>
  String(take.seed_changes.filter(([first]) => first <= chunk).at(-1)?.[1] ?? take.seed)

/**
 * The versions of a film's chunk that are there, the film's own first, those of earlier films too, each seed once.
 * @param {TakeState} film
 * @param {number} chunk
 * @param {Iterable<TakeState>} takes of the page
 * @returns {Version[]}
 */
export function versionsOf(film, chunk, takes) {
  const own = seedAt(film, chunk)
  /** @type {Map<string, Version>} */
  const versions = new Map()
  const has = (/** @type {TakeState} */ take) => take.chunks.some((c) => c.chunk === chunk && c.state === 'finished' && c.video)
  if (has(film)) versions.set(own, { seed: own, take: film, current: true, spares: [] })
  for (const take of takes) {
    const last = take.first_chunk + take.num_chunks - 1
    const isSame = take.workflow === film.workflow && take.node === film.node
    if (!isSame || (take.store_only && last !== chunk)) continue
    if (before(take, chunk) !== before(film, chunk) || !has(take)) continue
    const seed = seedAt(take, chunk)
    if (!versions.has(seed)) versions.set(seed, { seed, take, current: false, spares: [] })
    if (take.store_only) versions.get(seed)?.spares.push(take)
  }
  return [...versions.values()]
}

/**
 * The graph that makes one more version: the film's node up to that chunk, into the store alone, and what it needs.
 * @param {Graph} graph
 * @param {TakeState} film
 * @param {number} chunk
 * @returns {Graph}
 */
export function versionGraph(graph, film, chunk) {
  const seed = randomSeed()
  const text = film.seed_changes.filter(([first]) => first < chunk).map(([first, value]) => `${first}: ${value}`)
  const node = graph[film.node]
  /** @type {Record<string, unknown>} */
  const inputs = {
    ...node.inputs,
    num_chunks: chunk - film.first_chunk + 1,
    seed_changes: withSeedChange(text.join(', '), chunk, seed),
    write_file: false,
    take: `${film.name.slice(0, LONGEST_NAME - 40)} chunk ${chunk + 1} seed ${seed}`
  }
  if (Number.isSafeInteger(film.seed)) inputs.seed = film.seed
  return { ...needed(graph, film.node), [film.node]: { ...node, inputs } }
}

/** @param {Graph} graph @param {string} node @returns {Graph} the node and all that lead to it */
function needed(graph, node) {
  /** @type {Graph} */
  const found = {}
  const waiting = [node]
  for (let id = waiting.pop(); id !== undefined; id = waiting.pop()) {
    if (id in found || !(id in graph)) continue
    found[id] = graph[id]
    for (const value of Object.values(graph[id].inputs)) if (Array.isArray(value)) waiting.push(String(value[0]))
  }
  return found
}
