// The film strip's look, in the colours of ComfyUI's theme. Sizes are those of the graph: the canvas scales them.

const CSS = `
.helios-strip { box-sizing: border-box; width: 100%; min-width: 0; overflow: hidden; pointer-events: auto;
  color: var(--input-text, #ddd); font: 11px/1.4 system-ui, sans-serif; }
.helios-strip * { box-sizing: border-box; }
.helios-strip [hidden] { display: none !important; }
.helios-strip-inner { display: flex; flex-direction: column; gap: 6px; padding: 6px; border-radius: 6px;
  background: var(--comfy-input-bg, #222); }
.helios-strip-head { display: flex; flex-wrap: wrap; justify-content: space-between; gap: 0 12px; }
.helios-strip-numbers { color: var(--descrip-text, #999); font-variant-numeric: tabular-nums; white-space: nowrap; }
.helios-strip-message { color: var(--descrip-text, #999); overflow-wrap: anywhere; }
.helios-strip[data-status=failed] .helios-strip-message { color: var(--error-text, #f66); }
.helios-strip-bar { height: 3px; border-radius: 2px; overflow: hidden; background: #8884; }
.helios-strip-bar > div { height: 100%; width: 0; background: #4a9eff; transition: width .2s; }
.helios-strip-cells { display: grid; grid-template-columns: repeat(auto-fill, minmax(74px, 1fr)); gap: 6px;
  max-height: 264px; overflow-y: auto; scrollbar-width: thin; position: relative; }
.helios-strip-cell { position: relative; min-width: 0; content-visibility: auto; contain-intrinsic-size: 84px 70px; }
.helios-strip-play { position: relative; display: block; width: 100%; aspect-ratio: var(--helios-aspect, 5 / 3);
  padding: 0; border: 1px solid #8884; border-radius: 4px; overflow: hidden; color: inherit; font: inherit;
  background: var(--comfy-menu-bg, #181818); }
.helios-strip-play:enabled { cursor: pointer; }
.helios-strip-play:enabled:hover, .helios-strip-play:focus-visible { border-color: #4a9eff; outline: none; }
.helios-strip-cell[data-open] .helios-strip-play { border-color: #4a9eff; box-shadow: 0 0 0 1px #4a9eff; }
.helios-strip-cell[data-state=waiting] .helios-strip-play { border-style: dashed; opacity: .6; }
.helios-strip-cell[data-state=sampling] .helios-strip-play,
.helios-strip-cell[data-state=decoding] .helios-strip-play { border-color: #4a9eff; }
.helios-strip-play img { position: absolute; inset: 0; width: 100%; height: 100%; object-fit: cover; }
.helios-strip-note { position: absolute; inset: 0; display: flex; flex-direction: column; align-items: center;
  justify-content: center; color: var(--descrip-text, #999); font-size: 10px; line-height: 1.3; text-align: center; }
.helios-strip-step { position: absolute; left: 0; bottom: 0; height: 3px; background: #4a9eff; transition: width .2s; }
.helios-strip-tag { position: absolute; top: 3px; padding: 0 4px; border-radius: 3px; font-size: 9px;
  line-height: 13px; color: #fff; background: #000a; }
.helios-strip-index { left: 3px; }
.helios-strip-reused { right: 3px; background: #2c7a4bdd; }
.helios-strip-drift { left: 3px; top: 19px; background: #a35b1edd; }
.helios-strip-redo { position: absolute; right: 3px; top: calc(100% - 38px); width: 18px; height: 18px; padding: 0;
  border: 0; border-radius: 3px; color: #fff; background: #000b; font-size: 12px; line-height: 18px; cursor: pointer;
  opacity: 0; }
.helios-strip-cell:hover .helios-strip-redo, .helios-strip-redo:focus-visible { opacity: 1; }
.helios-strip-redo:hover { background: #4a9eff; }
.helios-strip-row { height: 16px; overflow: hidden; white-space: nowrap; text-overflow: ellipsis; font-size: 10px;
  line-height: 16px; color: var(--descrip-text, #999); }
.helios-strip-row[data-first] { color: var(--input-text, #ddd); }
.helios-strip-player { display: flex; flex-direction: column; gap: 6px; }
.helios-strip-player video, .helios-strip-player img { display: block; width: 100%; max-height: 320px;
  aspect-ratio: var(--helios-aspect, 5 / 3); object-fit: contain; border-radius: 4px; background: #000; }
.helios-strip-caption { display: flex; align-items: center; gap: 6px; }
.helios-strip-caption span { flex: 1; min-width: 0; overflow: hidden; white-space: nowrap; text-overflow: ellipsis; }
.helios-strip-caption button { padding: 2px 8px; border: 1px solid #8886; border-radius: 4px; color: inherit;
  background: var(--comfy-menu-bg, #333); font: inherit; cursor: pointer; white-space: nowrap; }
.helios-strip-caption button:hover { border-color: #4a9eff; }
`

/** Adds the style sheet to the page, once. */
export function addStripStyle() {
  if (document.getElementById('helios-strip-style')) return
  const style = document.createElement('style')
  style.id = 'helios-strip-style'
  style.textContent = CSS
  document.head.append(style)
}
