// What web/*.js uses of ComfyUI's frontend: its public hooks, and nothing else. ComfyUI serves the modules itself.

interface ComfyWidget {
  name: string
  type?: string
  value: unknown
  serialize?: boolean
  hidden?: boolean
  element?: HTMLElement
  options?: Record<string, unknown>
  callback?: (value: unknown) => void
  onRemove?: () => void
  [other: string]: unknown
}

interface ComfyInput {
  name: string
  link: number | null
  widget?: { name: string }
}

interface DOMWidgetOptions {
  serialize?: boolean
  hideOnZoom?: boolean
  margin?: number
  getMinHeight?: () => number
  getMaxHeight?: () => number
  getHeight?: () => number | string
  getValue?: () => string
  setValue?: (value: string) => void
  [other: string]: unknown
}

interface ComfyNode {
  id: number | string
  comfyClass?: string
  graph?: ComfyGraph | null
  subgraph?: ComfyGraph
  inputs?: ComfyInput[]
  widgets?: ComfyWidget[]
  size: [number, number]
  imgs?: HTMLImageElement[]
  videoContainer?: HTMLElement
  previewMediaType?: string
  addDOMWidget(name: string, type: string, element: HTMLElement, options?: DOMWidgetOptions): ComfyWidget
  removeWidget(widget: ComfyWidget): void
  setSize(size: [number, number]): void
  getInputNode?(slot: number): ComfyNode | null
  [other: string]: any
}

interface ComfyGraph {
  id: string
  nodes: ComfyNode[]
  getNodeById(id: number | string): ComfyNode | null
  setDirtyCanvas(foreground: boolean, background?: boolean): void
  [other: string]: any
}

interface ComfyExtension {
  name: string
  setup?(): void | Promise<void>
  nodeCreated?(node: ComfyNode): void
  loadedGraphNode?(node: ComfyNode): void
  afterConfigureGraph?(): void | Promise<void>
  beforeRegisterNodeDef?(nodeType: any, nodeData: any): void | Promise<void>
  [other: string]: any
}

declare module '*/scripts/app.js' {
  export const app: {
    rootGraph: ComfyGraph
    graph: ComfyGraph
    nodeOutputs: Record<string, unknown>
    nodePreviewImages: Record<string, string[]>
    registerExtension(extension: ComfyExtension): void
    queuePrompt(number: number, batchCount?: number): Promise<boolean>
    [other: string]: any
  }
}

declare module '*/scripts/api.js' {
  export const api: {
    apiURL(route: string): string
    fetchApi(route: string, options?: RequestInit): Promise<Response>
    addEventListener(type: string, listener: (event: CustomEvent) => void): void
    removeEventListener(type: string, listener: (event: CustomEvent) => void): void
    [other: string]: any
  }
}
