// The takes that this page knows, kept up to date by events; it draws nothing. Events and routes are documented in
// nodes/live/events.py, nodes/live/directing.py and nodes/live/routes.py.

import { parseSeedChanges } from './seeds.js'
import { words } from './texts.js'

/**
 * One chunk that is no longer waiting; see ChunkState in nodes/live/events.py.
 * @typedef {object} ChunkState
 * @property {number} chunk
 * @property {'sampling' | 'decoding' | 'finished'} state
 * @property {number | null} stage
 * @property {number | null} step
 * @property {number | null} total
 * @property {boolean | null} reused
 * @property {boolean} thumbnail
 * @property {boolean} video
 * @property {boolean} [anti_drift]
 */
/** @typedef {{film_seconds: number, fps: number | null, seconds_left: number | null}} Progress */
/** @typedef {{filename: string, subfolder: string, type: string}} FilmFile as core's /view names it */
/**
 * A take at one moment; see TakeState in nodes/live/events.py. "lost" is the page's own word: its server is away.
 * @typedef {object} TakeState
 * @property {string} id
 * @property {string} node
 * @property {string | null} workflow
 * @property {string} name
 * @property {number} first_chunk
 * @property {number} num_chunks
 * @property {number} chunk_frames
 * @property {number} film_fps
 * @property {number} width
 * @property {number} height
 * @property {number} seed
 * @property {[number, number | string][]} seed_changes
 * @property {[number, string][]} rows
 * @property {'running' | 'finished' | 'interrupted' | 'failed' | 'lost'} status
 * @property {string} message
 * @property {Progress} progress
 * @property {ChunkState[]} chunks
 * @property {FilmFile | null} film
 * @property {boolean} resumable
 * @property {boolean} store_only no film: a version of a chunk
 * @property {boolean} [live] directed while it is made
 * @property {import('./director.js').Directing} [directing] how, where this is known
 * @property {number} [rolls] the page's own count: its chunks were made again so often
 * @property {boolean} [open] the page's own word: nobody knows how long it becomes
 */
/**
 * A helios.take event of any kind.
 * @typedef {object} TakeEvent
 * @property {'start' | 'chunk' | 'end' | 'directed'} kind
 * @property {number} version
 * @property {string} id
 * @property {TakeState} take of "start"
 * @property {ChunkState} chunk of "chunk"
 * @property {Progress} progress of "chunk" and "end"
 * @property {TakeState['status']} status of "end"
 * @property {string} message of "end"
 * @property {FilmFile | null} film of "end"
 * @property {import('./director.js').Directing} state of "directed"
 */
/** @typedef {(kind: 'take' | 'chunk' | 'end' | 'directed', take: TakeState, chunk?: ChunkState) => void} TakeListener */

const VERSION = 1
const KNOWN_TAKES = 32

export class Takes {
  /** @param {() => Promise<{version: number, takes: TakeState[]} | null>} ask null while the server is away */
  constructor(ask) {
    this._ask = ask
    /** Oldest first. @type {Map<string, TakeState>} */
    this._takes = new Map()
    /** @type {Set<TakeListener>} */
    this._listeners = new Set()
    /** @type {Promise<void> | null} */
    this._refreshing = null
  }

  /** @param {TakeListener} listener @returns {() => void} ends it */
  subscribe(listener) {
    this._listeners.add(listener)
    return () => this._listeners.delete(listener)
  }

  /** @returns {Iterable<TakeState>} oldest first */
  all() {
    return this._takes.values()
  }

  /** @param {string} id a take that was deleted */
  forget(id) {
    this._takes.delete(id)
  }

  /** @param {'take' | 'chunk' | 'end' | 'directed'} kind @param {TakeState} take @param {ChunkState} [chunk] */
  _tell(kind, take, chunk) {
    for (const listener of this._listeners) listener(kind, take, chunk)
  }

  /** @param {TakeState} take */
  _remember(take) {
    this._takes.delete(take.id)
    this._takes.set(take.id, take)
    for (const id of this._takes.keys()) {
      if (this._takes.size <= KNOWN_TAKES) break
      this._takes.delete(id)
    }
    this._tell('take', take)
  }

  /** Asks the server for all takes, as after a reload. */
  async refresh() {
    this._refreshing ??= this._load().finally(() => {
      this._refreshing = null
    })
    await this._refreshing
  }

  async _load() {
    const answer = await this._ask()
    if (answer?.version !== VERSION) return
    const told = new Set(answer.takes.map(({ id }) => id))
    for (const take of this._takes.values()) {
      // It ran when the server went away, and the server that is back knows nothing of it.
      if (take.status === 'lost' && !told.has(take.id)) this._end(take, 'interrupted', words('stopped_early'))
    }
    for (const take of answer.takes) this._remember(take)
  }

  /** The server is away: what ran may run no more. */
  lose() {
    for (const take of this._takes.values()) if (take.status === 'running') this._end(take, 'lost', '')
  }

  /** @param {TakeState} take @param {TakeState['status']} status @param {string} message */
  _end(take, status, message) {
    take.status = status
    take.message = message
    // It ended where somebody said so.
    if (take.live && status !== 'lost') take.num_chunks = Math.max(1, finishedChunks(take))
    this._tell('end', take)
  }

  /** How a take is directed now. @param {TakeState} take @param {import('./director.js').Directing} state */
  direct(take, state) {
    take.directing = state
    take.rows = state.rows.map(({ chunk, text }) => [chunk, text])
    take.seed_changes = parseSeedChanges(state.seed_changes) ?? []
    const begun = state.next_chunk - take.first_chunk
    take.open ||= begun > take.num_chunks
    if (take.open) take.num_chunks = Math.max(1, begun)
    const kept = take.chunks.filter(({ chunk }) => chunk < state.next_chunk)
    if (kept.length < take.chunks.length) {
      take.chunks = kept
      take.rolls = (take.rolls ?? 0) + 1
    }
    this._tell('directed', take)
  }

  /** @param {TakeEvent} event */
  receive(event) {
    if (event?.version !== VERSION) return
    if (this._refreshing) {
      // The answer may be older than this.
      void this._refreshing.then(() => this.receive(event))
      return
    }
    if (event.kind === 'start') {
      this._remember(event.take)
      return
    }
    const take = this._takes.get(event.id)
    if (!take) {
      // It began before this page did. One that stays unknown has nothing to show here.
      void this.refresh()
      return
    }
    if (event.kind === 'directed') {
      this.direct(take, event.state)
      return
    }
    take.progress = event.progress
    if (event.kind === 'end') {
      take.film = event.film ?? null
      this._end(take, event.status, event.message)
      return
    }
    const index = take.chunks.findIndex((chunk) => chunk.chunk === event.chunk.chunk)
    if (index < 0) take.chunks.push(event.chunk)
    else take.chunks[index] = event.chunk
    this._tell('chunk', take, event.chunk)
  }
}

/** @param {TakeState} take @returns {number} finished chunks */
export const finishedChunks = (take) => take.chunks.filter((chunk) => chunk.state === 'finished').length

/** @param {TakeState} take @returns {number} seconds of film in a chunk */
export const chunkSeconds = (take) => take.chunk_frames / take.film_fps

/**
 * @param {[number, unknown][]} rows rising
 * @param {number} chunk
 * @returns {number} index of the row in force, or -1
 */
export const rowIndexAt = (rows, chunk) => rows.filter(([first]) => first <= chunk).length - 1
