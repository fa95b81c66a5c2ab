// The text of a prompt schedule, "0: a boat\n7: a storm": read and written as the server does.

/**
 * @typedef {{ first: number, blend?: string, prompt: string }} Row The chunk a row begins at, the chunks over which it
 *   takes over where it has its own, and its prompt.
 * @typedef {{ row: number, key: string, values: Record<string, string | number> }} Problem The row (-1: the whole
 *   text), the message and its values.
 */

// As helios_core/take/prompts.py: a row begins the text, a line, or follows ' /'.
const ROW_START = /(?:^|\n|(?<=\s)\/)\s*(\d+)(?:~(\d+))?\s*:/g

/**
 * The rows of a schedule's text, as the server reads them; null where the text begins outside any row.
 * @param {string} text
 * @returns {Row[] | null}
 */
export function parseSchedule(text) {
  const starts = [...text.matchAll(ROW_START)]
  if (!starts.length) return [{ first: 0, prompt: text.trim() }]
  if (text.slice(0, starts[0].index).trim()) return null
  return starts.map((start, i) => ({
    first: Number(start[1]),
    blend: start[2],
    prompt: text.slice(start.index + start[0].length, starts[i + 1]?.index).trim(),
  }))
}

/**
 * A schedule's text, one row a line.
 * @param {Row[]} rows
 */
export function formatSchedule(rows) {
  // A text without prompt is a schedule too, the empty one; a numbered row without prompt is not.
  if (rows.length === 1 && rows[0].first === 0 && !rows[0].prompt) return ''
  return rows.map(({ first, blend, prompt }) => `${first}${blend ? `~${blend}` : ''}: ${prompt}`).join('\n')
}

/**
 * The first thing the server would refuse, or null.
 * @param {string} text
 * @param {Row[] | null} rows
 * @returns {Problem | null}
 */
export function findProblem(text, rows) {
  if (!rows) return { row: -1, key: 'before', values: { start: text.trim().slice(0, 30) } }
  if (rows[0].first !== 0) return { row: 0, key: 'not_zero', values: { first: rows[0].first } }
  for (let i = 1; i < rows.length; i++) {
    const [previous, first] = [rows[i - 1].first, rows[i].first]
    if (first <= previous)
      return { row: i, key: 'overlap', values: { row: i + 1, first, other: i, previous, next: previous + 1 } }
  }
  const empty = text.trim() ? rows.findIndex(({ prompt }) => !prompt) : -1
  return empty < 0 ? null : { row: empty, key: 'empty', values: { row: empty + 1 } }
}
