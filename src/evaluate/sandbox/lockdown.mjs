// What is taken away before a stranger's program runs, beside what Node's permission model forbids.
import { constants } from "node:fs";

/** @param {number} memoryBytes how large WebAssembly memory may become */
export function lockDown(memoryBytes) {
  const scope = /** @type {Record<string, unknown>} */ (/** @type {unknown} */ (globalThis));
  for (const name of ["fetch", "WebSocket", "XMLHttpRequest", "EventSource", "navigator", "BroadcastChannel"])
    Object.defineProperty(scope, name, { value: undefined, configurable: false, writable: false });
  const host = /** @type {Record<string, unknown>} */ (/** @type {unknown} */ (process));
  // Pyodide asks for nothing but the numbers of file modes
  const binding = (/** @type {string} */ name) => {
    if (name !== "constants") throw new Error(`process.binding(${name}) is not for programs`);
    return { fs: constants };
  };
  for (const [name, value] of Object.entries({ binding, getBuiltinModule: undefined, dlopen: undefined, env: {} }))
    Object.defineProperty(host, name, { value, configurable: false, writable: false });
  const grow = WebAssembly.Memory.prototype.grow;
  const page = 65_536;
  WebAssembly.Memory.prototype.grow = function (pages) {
    if (this.buffer.byteLength + pages * page > memoryBytes) throw new RangeError("the memory limit is reached");
    return grow.call(this, pages);
  };
}
