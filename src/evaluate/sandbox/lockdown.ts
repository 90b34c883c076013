import { constants } from "node:fs";

/** The parts of WebAssembly used here, which Node's types lack. */
export interface WasmMemory {
  readonly buffer: ArrayBuffer;
  grow(pages: number): number;
}
interface WasmApi {
  readonly Memory: { readonly prototype: WasmMemory };
  compile(bytes: Uint8Array): Promise<object>;
  instantiate: (source: object, imports: object) => Promise<object>;
}
export const wasm = (globalThis as unknown as { readonly WebAssembly: WasmApi }).WebAssembly;

const PAGE_BYTES = 65_536;

/**
 * Takes from untrusted programs what Node's permission model leaves them: the network, the internals of the process, and more
 * than so much memory.
 */
export function lockDown(memoryBytes: number): void {
  const replace = (from: object, name: string, value: unknown = undefined) =>
    Object.defineProperty(from, name, { value, configurable: false, writable: false });
  for (const name of ["fetch", "WebSocket", "XMLHttpRequest", "EventSource", "navigator", "BroadcastChannel"])
    replace(globalThis, name);
  // Pyodide needs the numbers of file modes only
  replace(process, "binding", (name: string) => {
    if (name !== "constants") throw new Error(`process.binding(${name}) is not available to programs`);
    return { fs: constants };
  });
  for (const name of ["getBuiltinModule", "dlopen"]) replace(process, name);
  replace(process, "env", {});
  const { grow } = wasm.Memory.prototype;
  wasm.Memory.prototype.grow = function (this: WasmMemory, pages: number) {
    if (this.buffer.byteLength + pages * PAGE_BYTES > memoryBytes) throw new RangeError("the memory limit is reached");
    return grow.call(this, pages);
  };
}
