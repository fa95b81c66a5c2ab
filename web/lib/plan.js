// What the open workflow says about a node's film, before it is rendered; and edits of the inputs that say it.

import { formatSchedule, parseSchedule } from './schedule.js'
import { parseSeedChanges } from './seeds.js'
import { rowIndexAt } from './takes.js'

/** @typedef {import('./takes.js').TakeState} TakeState */
/**
 * @typedef {object} Plan
 * @property {number} num_chunks
 * @property {number} film_fps
 * @property {[number, string][]} rows
 * @property {[number, string][]} seeds changes of the seed, which stay text
 * @property {'schedule' | 'prompt' | null} editable what an edit of the prompts can write
 */

const SCHEDULE = 'HeliosPromptScheduleText'
const PROMPT = 'CLIPTextEncode'
const CONDITIONINGS = ['positive', 'conditioning', 'conditioning_1', 'conditioning_to']
const MOST_STEPS = 20
const RELEASED_FPS = 24

/** @param {ComfyNode} node @param {string} name @returns {ComfyWidget | undefined} unless another node decides it */
export function ownWidget(node, name) {
  const linked = node.inputs?.some((input) => input.widget?.name === name && input.link != null)
  return linked ? undefined : node.widgets?.find((widget) => widget.name === name)
}

/** @param {ComfyWidget} widget @param {string | number} value */
export function setWidget(widget, value) {
  widget.value = value
  widget.callback?.(value)
}

/**
 * The widget that holds the prompts in force at a node, found against the direction of its links.
 * @param {ComfyNode} node
 * @returns {{ kind: 'schedule' | 'prompt', widget: ComfyWidget } | null}
 */
function promptWidget(node) {
  /** @type {ComfyNode | null | undefined} */
  let at = node
  for (let step = 0; at && step < MOST_STEPS; step++) {
    if (at.comfyClass === SCHEDULE || at.comfyClass === PROMPT) {
      const widget = ownWidget(at, 'text')
      return widget ? { kind: at.comfyClass === SCHEDULE ? 'schedule' : 'prompt', widget } : null
    }
    at = before(at)
  }
  return null
}

/** @param {ComfyNode} node @returns {ComfyNode | null | undefined} the node that its first conditioning comes from */
function before(node) {
  const inputs = node.inputs ?? []
  const slot = CONDITIONINGS.map((name) => inputs.findIndex((input) => input.name === name)).find((i) => i >= 0)
  return slot === undefined ? null : node.getInputNode?.(slot)
}

/** @param {ComfyNode} node @returns {Plan} */
export function planOf(node) {
  const number = (/** @type {string} */ name, /** @type {number} */ other) =>
    Number(node.widgets?.find((widget) => widget.name === name)?.value) || other
  const found = promptWidget(node)
  const rows = found ? readRows(found) : []
  return {
    num_chunks: number('num_chunks', number('max_chunks', 1)),
    film_fps: number('fps', RELEASED_FPS),
    rows: rows ?? [],
    seeds: parseSeedChanges(String(ownWidget(node, 'seed_changes')?.value ?? '')) ?? [],
    editable: found && rows ? found.kind : null
  }
}

/** @param {{ kind: 'schedule' | 'prompt', widget: ComfyWidget }} found @returns {[number, string][] | null} */
function readRows({ kind, widget }) {
  const text = String(widget.value ?? '')
  if (kind === 'prompt') return [[0, text.trim()]]
  return parseSchedule(text)?.map(({ first, prompt }) => [first, prompt]) ?? null
}

/**
 * Writes other rows into the widget that the node's prompts come from.
 * @param {ComfyNode} node
 * @param {[number, string][]} rows
 */
export function writeRows(node, rows) {
  const found = promptWidget(node)
  if (!found) return
  const present = parseSchedule(String(found.widget.value ?? '')) ?? []
  const blends = new Map(present.map(({ first, blend }) => [first, blend]))
  const text = formatSchedule(rows.map(([first, prompt]) => ({ first, blend: blends.get(first), prompt })))
  setWidget(found.widget, found.kind === 'prompt' ? (rows[0]?.[1] ?? '') : text)
}

/**
 * The first chunk that another render would make anew.
 * @param {TakeState} take @param {Plan} plan @param {number} count of chunks to look at
 */
export function staleFrom(take, plan, count) {
  const textAt = (/** @type {[number, string][]} */ rows, /** @type {number} */ chunk) =>
    rows[rowIndexAt(rows, chunk)]?.[1]
  const seedAt = (/** @type {[number, string | number][]} */ seeds, /** @type {number} */ chunk) =>
    String(seeds[rowIndexAt(seeds, chunk)]?.[1] ?? take.seed)
  for (let chunk = take.first_chunk; chunk < take.first_chunk + count; chunk++) {
    const isOther = plan.editable && textAt(plan.rows, chunk) !== textAt(take.rows, chunk)
    if (isOther || seedAt(plan.seeds, chunk) !== seedAt(take.seed_changes, chunk)) return chunk
  }
  return Infinity
}
