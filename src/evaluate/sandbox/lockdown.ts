import { constants } from "node:fs";

/** The parts of WebAssembly that are used here; Node's types leave it out. */
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
 * Takes away what a stranger's program must not have, beside what Node's permission model forbids: the network, the process's
 * insides, and more than so much memory.
 */
export function lockDown(memoryBytes: number): void {
  const take = (from: object, name: string, value: unknown = undefined) =>
    Object.defineProperty(from, name, { value, configurable: false, writable: false });
  for (const name of ["fetch", "WebSocket", "XMLHttpRequest", "EventSource", "navigator", "BroadcastChannel"])
    take(globalThis, name);
  // Pyodide asks for nothing but the numbers of file modes
  take(process, "binding", (name: string) => {
    if (name !== "constants") throw new Error(`process.binding(${name}) is not for programs`);
    return { fs: constants };
  });
  for (const name of ["getBuiltinModule", "dlopen"]) take(process, name);
  take(process, "env", {});
  const { grow } = wasm.Memory.prototype;
  wasm.Memory.prototype.grow = function (this: WasmMemory, pages: number) {
    if (this.buffer.byteLength + pages * PAGE_BYTES > memoryBytes) throw new RangeError("the memory limit is reached");
    return grow.call(this, pages);
  };
}
