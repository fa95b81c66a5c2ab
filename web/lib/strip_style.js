// The film strip's look, in the colours of ComfyUI's theme. Sizes are those of the graph: the canvas scales them.

import { addStyle } from './dom.js'

/** Least height of a strip in a node, in units of the graph: it is there before the first take, and stays. */
export const STRIP_HEIGHT = 326

const CSS = `
.helios-strip { position: relative; box-sizing: border-box; width: 100%; height: 100%; min-width: 0; min-height: ${STRIP_HEIGHT}px;
  overflow: hidden; pointer-events: auto; }
.helios-strip-inner { --helios-accent: #4a9eff; display: flex; flex-direction: column; gap: 5px; width: 100%;
  height: 100%; padding: 6px; border-radius: 6px; color: var(--input-text, #ddd);
  background: var(--comfy-input-bg, #222); font: 11px/1.4 system-ui, sans-serif; }
/* Of the node's height whatever it holds: a message takes room from the player, and the node stays as it is. */
.helios-strip > .helios-strip-inner { position: absolute; inset: 0; height: auto; }
.helios-strip-inner * { box-sizing: border-box; }
.helios-strip-inner [hidden] { display: none !important; }
.helios-strip-head { display: flex; flex-wrap: wrap; justify-content: space-between; gap: 0 12px; }
.helios-strip-numbers { color: var(--descrip-text, #999); font-variant-numeric: tabular-nums; white-space: nowrap; }
.helios-strip-message { max-height: 48px; overflow-y: auto; color: var(--descrip-text, #999); overflow-wrap: anywhere; }
[data-status=failed] > .helios-strip-message { color: var(--error-text, #f66); }
.helios-strip-bar { flex: none; height: 3px; border-radius: 2px; overflow: hidden; background: #8884; }
.helios-strip-fill { height: 100%; width: 0; background: var(--helios-accent); transition: width .2s; }
.helios-strip-actions { display: flex; flex: none; flex-wrap: wrap; align-items: center; gap: 4px; }
.helios-strip-caption { flex: 1; min-width: 50px; }
.helios-button { padding: 1px 7px; border: 1px solid #8888; border-radius: 4px; color: inherit;
  background: var(--comfy-menu-bg, #333); font: inherit; cursor: pointer; white-space: nowrap; }
.helios-button:disabled { opacity: .5; cursor: default; }
.helios-button:enabled:hover { border-color: var(--helios-accent); }
.helios-strip-inner :focus-visible { outline: 2px solid var(--helios-accent); outline-offset: 1px; }
.helios-player { display: flex; flex: 1 1 150px; flex-direction: column; gap: 4px; min-height: 0; }
.helios-player-screen { position: relative; flex: 1; min-height: 0; border-radius: 4px; overflow: hidden;
  background: #000; cursor: pointer; }
.helios-player-video, .helios-player-picture { position: absolute; inset: 0; width: 100%; height: 100%;
  object-fit: contain; }
.helios-player-text { position: absolute; inset: 0; display: flex; align-items: center; justify-content: center;
  padding: 8px; color: #bbb; text-align: center; }
.helios-versions { position: absolute; inset: 0; display: flex; flex-direction: column; gap: 4px; padding: 4px;
  color: var(--input-text, #ddd); background: var(--comfy-input-bg, #222); cursor: default; }
.helios-versions-head { display: flex; align-items: center; gap: 4px; }
.helios-versions-title { flex: 1; }
.helios-versions-list { display: grid; flex: 1; grid-auto-columns: minmax(76px, 1fr); grid-auto-flow: column; gap: 4px;
  min-height: 0; overflow-x: auto; }
.helios-version { display: flex; flex-direction: column; gap: 3px; align-items: center; justify-content: center;
  min-height: 0; padding: 2px; border: 1px solid #8885; border-radius: 3px; }
.helios-version[data-current=true] { border-color: var(--helios-accent); }
.helios-version-film { flex: 1; width: 100%; min-height: 0; object-fit: contain; }
.helios-player-controls { display: flex; flex: none; align-items: center; gap: 6px; }
.helios-player-range { flex: 1; min-width: 40px; height: 14px; margin: 0; accent-color: var(--helios-accent); }
.helios-player-time { font-variant-numeric: tabular-nums; white-space: nowrap; }
.helios-player-controls .helios-button { width: 28px; padding: 1px 0; }
[data-action=sound][aria-pressed=false] { opacity: .5; text-decoration: line-through; }
.helios-timeline { flex: none; overflow-x: auto; overflow-y: hidden; scrollbar-width: thin; }
.helios-timeline-track { position: relative; min-width: 1px; height: 92px; }
.helios-timeline-ruler { position: relative; height: 14px; }
.helios-timeline-tick { position: absolute; padding-left: 3px; border-left: 1px solid #8888; font-size: 10px;
  line-height: 14px; color: var(--descrip-text, #999); white-space: nowrap; }
.helios-timeline-head { position: absolute; top: 0; bottom: 0; width: 2px; margin-left: -1px; background: #f4574d;
  pointer-events: none; }
.helios-bands { position: relative; height: 24px; }
.helios-band { position: absolute; top: 2px; height: 20px; padding: 0 6px; border: 0; border-radius: 3px;
  overflow: clip; color: inherit; font: inherit; text-align: left; white-space: nowrap; cursor: default;
  background: color-mix(in srgb, hsl(var(--helios-hue) 65% 50%) 32%, var(--comfy-input-bg, #222)); }
.helios-band-text { position: sticky; left: 6px; }
.helios-band-border { position: absolute; top: 0; z-index: 1; width: 9px; height: 24px; margin-left: -4px;
  cursor: ew-resize; touch-action: none; }
.helios-band-border::after { position: absolute; inset: 2px 3px; border-radius: 2px; content: '';
  background: var(--input-text, #ddd); }
.helios-band-field { position: absolute; top: 0; z-index: 2; width: 260px; height: 78px; padding: 4px; resize: none;
  border: 1px solid var(--helios-accent); border-radius: 3px; color: inherit; background: var(--comfy-menu-bg, #181818);
  font: inherit; }
.helios-timeline-cells { position: relative; height: 52px; }
.helios-cell { position: absolute; top: 0; height: 50px; border: 1px solid #8885; border-radius: 3px; overflow: hidden;
  background: var(--comfy-menu-bg, #181818); background-clip: padding-box; cursor: pointer; }
.helios-cell[data-state=waiting] { border-style: dashed; cursor: default; }
.helios-cell[aria-selected=true] { border-color: var(--helios-accent); box-shadow: inset 0 0 0 1px var(--helios-accent); }
.helios-cell img { position: absolute; inset: 1px; width: calc(100% - 2px); height: calc(100% - 2px);
  object-fit: cover; border-radius: 2px; }
.helios-cell[data-stale] img { opacity: .35; }
.helios-cell-fill { position: absolute; left: 0; top: 0; bottom: 0; width: 0; background: #4a9eff44;
  transition: width .2s; }
.helios-cell-fill[data-stage='1'] { background: #4a9eff77; }
.helios-cell-fill[data-stage='2'] { background: #4a9effaa; }
.helios-cell-note { position: absolute; inset: 14px 0 0; display: flex; align-items: center; justify-content: center;
  font-size: 10px; text-align: center; }
.helios-cell-number, .helios-cell-seed, .helios-cell-reused, .helios-cell-drift { position: absolute; top: 2px; padding: 0 3px;
  border-radius: 3px; font-size: 10px; line-height: 13px; color: #fff; background: #000c; }
/* Not hidden from screen readers. */
.helios-cell-words { position: absolute; width: 1px; height: 1px; overflow: hidden; clip-path: inset(50%); }
.helios-cell-number { left: 2px; }
.helios-cell-seed { top: auto; bottom: 2px; left: 2px; color: #ffd479; }
.helios-cell-reused { right: 2px; }
.helios-cell-drift { top: auto; right: 2px; bottom: 2px; color: #ffb27d; }
.helios-strip-dialog { width: 100vw; height: 100vh; max-width: none; max-height: none; padding: 16px; border: 0;
  background: var(--comfy-menu-bg, #181818); }
.helios-strip-dialog .helios-strip-inner { font-size: 14px; }
/* The strip shows previews while a node samples: the new design's own, and its size in words, would come below it. */
[data-testid^=node-body-]:has(.helios-strip) > :is(img, img + div) { display: none; }
`

/** Adds the style sheet to the page, once. */
export const addStripStyle = () => addStyle('helios-strip-style', CSS)
