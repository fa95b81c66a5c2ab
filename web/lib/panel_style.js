// The look of the panel of takes, in the colours of ComfyUI's theme.

import { addStyle } from './dom.js'

const CSS = `
.helios-panel { display: flex; flex-direction: column; gap: 8px; height: 100%; padding: 12px; overflow-y: auto;
  color: var(--input-text, #ddd); font: 13px/1.4 system-ui, sans-serif; }
.helios-panel [hidden] { display: none !important; }
.helios-panel-head { display: flex; align-items: center; gap: 8px; }
.helios-panel-title { flex: 1; margin: 0; font-size: 15px; font-weight: 600; }
.helios-panel-size, .helios-panel-numbers, .helios-panel-prompt { color: var(--descrip-text, #999); font-size: 12px; }
.helios-panel-status { margin: 0; }
.helios-panel-list { display: flex; flex-direction: column; gap: 10px; margin: 0; padding: 0; list-style: none; }
.helios-panel-item { display: grid; grid-template-columns: 96px minmax(0, 1fr); gap: 4px 10px; padding: 8px;
  border: 1px solid #8884; border-radius: 8px; background: var(--comfy-input-bg, #222); }
.helios-panel-cover { grid-row: span 2; align-self: start; width: 96px; height: 60px; padding: 0; border: 0;
  border-radius: 4px; overflow: hidden; background: #000; cursor: pointer; }
.helios-panel-cover img { display: block; width: 100%; height: 100%; object-fit: cover; }
.helios-panel-text { display: flex; flex-direction: column; min-width: 0; }
.helios-panel-name { overflow: hidden; white-space: nowrap; text-overflow: ellipsis; }
.helios-panel-prompt { display: -webkit-box; overflow: hidden; -webkit-box-orient: vertical; -webkit-line-clamp: 2; }
.helios-panel-item[data-status=failed] .helios-panel-state { color: var(--error-text, #f66); }
.helios-panel-actions { display: flex; flex-wrap: wrap; gap: 4px; }
.helios-panel .helios-button { padding: 2px 8px; font-size: 12px; }
.helios-panel [data-sure] { border-color: #d9a441; }
.helios-panel :focus-visible { outline: 2px solid #4a9eff; outline-offset: 1px; }
`

/** Adds the style sheet to the page, once. */
export const addPanelStyle = () => addStyle('helios-panel-style', CSS)
