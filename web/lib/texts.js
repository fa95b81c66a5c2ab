// The texts of texts.json, which has them in English and Chinese.

/** @type {Record<string, Record<string, Record<string, string>>>} by widget, language and name */
const TEXTS = await (await fetch(new URL('texts.json', import.meta.url))).json()

/**
 * @param {string} widget
 * @param {string} locale as the page has it
 * @returns {(name: string, values?: Record<string, string | number>) => string} values of the places in braces
 */
export function wordsOf(widget, locale) {
  const texts = TEXTS[widget][locale.startsWith('zh') ? 'zh' : 'en']
  return (name, values = {}) => texts[name].replace(/\{(\w+)\}/g, (_, place) => String(values[place]))
}
