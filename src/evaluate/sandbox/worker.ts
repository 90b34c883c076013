/** Runs one Python program and reports how it ended. */
import path from "node:path";
import { parentPort, workerData } from "node:worker_threads";
import { lockDown, wasm } from "./lockdown.js";
import { BEGUN, PASSED, type WorkerData } from "./messages.js";

const { pyodide, compiled, snapshot, program, memoryBytes } = workerData as WorkerData;
lockDown(memoryBytes);
const port = parentPort;
const { instantiate } = wasm;
/** Only the interpreter is as large as this; the supervisor has compiled it. */
const INTERPRETER_BYTES = 5e6;
wasm.instantiate = async (source, imports) =>
  "byteLength" in source && Number(source.byteLength) > INTERPRETER_BYTES
    ? { module: compiled, instance: await instantiate(compiled, imports) }
    : instantiate(source, imports);
const { loadPyodide } = (await import(path.join(pyodide, "pyodide.mjs"))) as typeof import("pyodide");
const discard = () => {};
const python = await loadPyodide({
  _loadSnapshot: snapshot as unknown as ArrayBuffer,
  jsglobals: Object.create(null), // the module "js" is empty
  stdin: () => null,
  stdout: discard,
  stderr: discard,
});
// JavaScript cannot be imported
python.runPython("import sys\nsys.modules.update({'js': None, 'pyodide_js': None})");
let verdict = PASSED;
try {
  python.globals.set("program", program);
  port?.postMessage(BEGUN);
  // a scope of its own, as in code_eval. As the interpreter's own program it would lose indentation, of its texts as well
  python.runPython("exec(program, {})");
} catch (error) {
  verdict = `failed: ${error instanceof Error ? error.message.trim() : error}`;
}
port?.postMessage(verdict);
