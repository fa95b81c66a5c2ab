// The text of the seed_changes input, "7: 123, 9: 5": from chunk 7 on the seed is 123, from 9 on it is 5.

/**
 * Seeds stay text: they may be larger than numbers can be exactly.
 * @param {string} text
 * @returns {[number, string][] | null} (chunk, seed), rising; null where the text is not a list of changes
 */
export function parseSeedChanges(text) {
  /** @type {Map<number, string>} */
  const changes = new Map()
  for (const part of text.split(/[,;\n]/)) {
    if (!part.trim()) continue
    const match = /^([0-9]{1,9})\s*:\s*([0-9]+)$/.exec(part.trim())
    if (!match) return null
    changes.set(Number(match[1]), match[2])
  }
  return [...changes].sort((a, b) => a[0] - b[0])
}

/**
 * The text with one more change, or with that chunk's changed.
 * @param {string} text
 * @param {number} chunk
 * @param {number | string} seed
 * @returns {string | null} null where the text is not a list of changes
 */
export function withSeedChange(text, chunk, seed) {
  const changes = parseSeedChanges(text)
  if (!changes) return null
  const others = changes.filter(([first]) => first !== chunk)
  const all = [...others, /** @type {[number, string]} */ ([chunk, String(seed)])].sort((a, b) => a[0] - b[0])
  return all.map(([first, value]) => `${first}: ${value}`).join(', ')
}

/** @returns {number} a seed of 32 bits */
export function randomSeed() {
  return crypto.getRandomValues(new Uint32Array(1))[0]
}
