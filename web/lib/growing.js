// A film that is still being made, for a video element: the take's live stream through Media Source Extensions. What is
// far from the second that plays is dropped, and asked for again when somebody goes there.

// Seconds kept in memory before and after the one that plays.
const [BEHIND, AHEAD] = [30, 60]

/** A request that the server did not answer: it may the next time. */
class Unanswered extends Error {}
const [TRIES, AGAIN] = [5, 1000]

/** @typedef {{ header: string, parts: string[], seconds: number }} Playlist */

export class GrowingFilm {
  /** Some servers allow their pages no such media. */
  static possible = 'MediaSource' in window

  /**
   * @param {string} address of the playlist
   * @param {() => void} failed it cannot be played here
   */
  constructor(address, failed) {
    this.address = new URL(address, location.href).href
    this._failed = failed
    /** @type {HTMLVideoElement | null} */
    this._video = null
    /** @type {MediaSource | null} */
    this._media = null
    /** @type {SourceBuffer | null} */
    this._buffer = null
    /** @type {Playlist} */
    this._list = { header: '', parts: [], seconds: 1 }
    /** Addresses of the parts in memory, by number. @type {Map<number, string>} */
    this._held = new Map()
    this._opened = false
    this._grown = true
    this._busy = false
    this._lost = 0
    this._free = () => {}
  }

  /** Seconds in a part. */
  get seconds() {
    return this._list.seconds
  }

  /** @param {HTMLVideoElement} video that shows it from now on */
  open(video) {
    this._video = video
    this._media = new MediaSource()
    video.src = URL.createObjectURL(this._media)
    const address = video.src
    this._free = () => URL.revokeObjectURL(address)
    this._media.onsourceopen = () => {
      this._opened = true
      this._free()
      void this.fill()
    }
  }

  close() {
    this._free()
    this._video = null
  }

  failed() {
    if (!this._video) return
    this.close()
    GrowingFilm.possible = this._opened
    this._failed()
  }

  /** The take has other chunks than before. */
  refresh() {
    this._grown = true
    void this.fill()
  }

  /** Loads what is to be played next. */
  async fill() {
    if (this._busy || this._media?.readyState !== 'open') return
    this._busy = true
    let again = false
    try {
      while (this._video && (await this._step()));
      this._lost = 0
    } catch (error) {
      again = error instanceof Unanswered && ++this._lost < TRIES
      if (!again) this.failed()
    }
    this._busy = false
    if (again) setTimeout(() => this._video && this.refresh(), AGAIN)
  }

  /** @returns {Promise<boolean>} whether there was something to do */
  async _step() {
    if (this._grown) {
      this._grown = false
      await this._read()
      return true
    }
    const { parts, seconds } = this._list
    const at = this._video?.currentTime ?? 0
    const [from, to] = [Math.floor((at - BEHIND) / seconds), Math.ceil((at + AHEAD) / seconds)]
    for (const number of this._held.keys()) if (number < from || number > to) await this._drop(number, number + 1)
    const first = Math.floor(at / seconds)
    const wanted = parts.findIndex((_, number) => number >= first && number < to && !this._held.has(number))
    if (wanted < 0) return false
    const data = await load(parts[wanted])
    // Somebody may have gone elsewhere meanwhile, or the chunk been made again: the next step looks anew.
    if (!this._grown) {
      await this._change((buffer) => buffer.appendBuffer(data))
      this._held.set(wanted, parts[wanted])
    }
    return true
  }

  async _read() {
    const list = parse(await (await ask(this.address)).text(), this.address)
    this._list = list
    if (!this._media) return
    if (!this._buffer) {
      const header = await ask(list.header)
      this._buffer = this._media.addSourceBuffer(header.headers.get('Content-Type') ?? '')
      const data = await header.arrayBuffer()
      await this._change((buffer) => buffer.appendBuffer(data))
    }
    for (const [number, address] of this._held)
      if (list.parts[number] !== address) await this._drop(number, Infinity)
    this._media.duration = list.parts.length * list.seconds
  }

  /** @param {number} from @param {number} to parts */
  async _drop(from, to) {
    const { seconds } = this._list
    // A little before the borders, which are rounded.
    await this._change((buffer) => buffer.remove(Math.max(0, from * seconds - 0.001), to * seconds - 0.001))
    for (const number of [...this._held.keys()]) if (number >= from && number < to) this._held.delete(number)
  }

  /** @param {(buffer: SourceBuffer) => void} change */
  async _change(change) {
    const buffer = this._buffer
    if (!buffer) return
    await new Promise((done, failed) => {
      buffer.onupdateend = done
      buffer.onerror = failed
      change(buffer)
    })
  }
}

/** @param {string} address */
async function ask(address) {
  const response = await fetch(address).catch(() => null)
  if (response?.status !== 200) throw new Unanswered(address)
  return response
}

/** @param {string} address */
const load = async (address) => (await ask(address)).arrayBuffer()

/** @param {string} text @param {string} address its own @returns {Playlist} */
function parse(text, address) {
  const absolute = (/** @type {string} */ name) => new URL(name, address).href
  const lines = text.split('\n')
  return {
    header: absolute(/URI="(.+?)"/.exec(text)?.[1] ?? ''),
    parts: lines.filter((line) => line && !line.startsWith('#')).map(absolute),
    seconds: Number(/EXTINF:([\d.]+)/.exec(text)?.[1])
  }
}
