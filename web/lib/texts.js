// The texts of texts.json, which has them in English and Chinese.

/** @type {Record<string, Record<string, Record<string, string>>>} by widget, language and name */
const TEXTS = await (await fetch(new URL('texts.json', import.meta.url))).json()

let locale = () => 'en'

/** @param {() => string} asked the page's locale, asked for every text: a page knows it late */
export function speak(asked) {
  locale = asked
}

/**
 * @param {string} widget
 * @returns {(name: string, values?: Record<string, string | number>) => string} values of the places in braces
 */
export const wordsOf = (widget) => (name, values = {}) =>
  TEXTS[widget][locale().startsWith('zh') ? 'zh' : 'en'][name].replace(/\{(\w+)\}/g, (_, place) => String(values[place]))

/** What the film strip says. */
export const words = wordsOf('strip')
