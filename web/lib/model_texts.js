// What Helios Load Model says, in English and Chinese.

import { app } from '../../../scripts/app.js'

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

/** @type {Record<string, Record<string, string>>} */
const TEXTS = {
  en: {
    uses: 'Uses {name}, made for {size}.',
    random: 'Its weights are random: it shows that the workflow runs, in moving colours.',
    small:
      'It knows a small world: a red, orange, yellow, green, blue or purple ball, square, triangle or ring that moves ' +
      'left, right, up and down or in a circle, or bounces off the edges, at night, in the snow, in the desert or in a ' +
      'grey hall. Try "A red ball moves left in the snow."',
    absent: '{name} is not installed ({gigabytes} GB).',
    lacks: '{name} lacks {count} files: {files}',
    download: 'Download {name}',
    stop: 'Stop the download',
    progress: 'Download',
    waiting: 'Asking the hub which files there are ...',
    running: '{done} of {total}',
    finished: 'Downloaded.',
    stopped: 'Stopped at {done} of {total}; finished files are kept.',
  },
  zh: {
    uses: '使用 {name}，适用尺寸 {size}。',
    random: '其权重是随机的：只用来验证工作流能运行，画面是流动的色彩。',
    small:
      '它只认识一个小世界：red、orange、yellow、green、blue、purple 的 ball、square、triangle、ring，moves left、moves right、' +
      'moves up and down、moves in a circle 或 bounces off the edges，背景为 at night、in the snow、in the desert 或 ' +
      'in a grey hall。试试 "A red ball moves left in the snow."',
    absent: '{name} 尚未安装（{gigabytes} GB）。',
    lacks: '{name} 缺少 {count} 个文件：{files}',
    download: '下载 {name}',
    stop: '停止下载',
    progress: '下载进度',
    waiting: '正在查询文件列表……',
    running: '{done} / {total}',
    finished: '下载完成。',
    stopped: '已停在 {done} / {total}，已完成的文件会保留。',
  },
}

/** @param {string} key @param {Record<string, string | number>} [values] */
export function words(key, values = {}) {
  const locale = String(app.extensionManager?.setting?.get('Comfy.Locale') ?? 'en')
  const text = (locale.startsWith('zh') ? TEXTS.zh : TEXTS.en)[key]
  return text.replace(/\{(\w+)\}/g, (_, name) => String(values[name]))
}

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
