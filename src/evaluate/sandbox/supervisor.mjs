// The process that runs Python programs: each in a worker thread of its own that ends with the program. Started by
// python.ts with no environment, no right to any file but Pyodide's, and no way to make code from strings.
import { readFileSync } from "node:fs";
import path from "node:path";
import { Worker } from "node:worker_threads";
import { lockDown } from "./lockdown.mjs";

const [pyodide = "", memoryBytes = "0", seconds = "0"] = process.argv.slice(2);
const tell = process.send?.bind(process);
lockDown(Number(memoryBytes));

const binary = readFileSync(path.join(pyodide, "pyodide.asm.wasm"));
const compiled = await WebAssembly.compile(binary);
const { loadPyodide } = await import(path.join(pyodide, "pyodide.mjs"));
// the interpreter as it is after its start, so that it need not start again for each program
const started = await loadPyodide({ _makeSnapshot: true, jsglobals: Object.create(null) });
const bytes = started.makeMemorySnapshot();
const snapshot = new Uint8Array(new SharedArrayBuffer(bytes.length));
snapshot.set(bytes);

process.on("message", (/** @type {{ id: number, program: string }} */ { id, program }) => {
  const worker = new Worker(new URL("./worker.mjs", import.meta.url), {
    workerData: { pyodide, compiled, snapshot, program, memoryBytes: Number(memoryBytes) },
    env: {},
    stdin: false,
    stdout: true,
    stderr: true,
    resourceLimits: { maxOldGenerationSizeMb: 256, maxYoungGenerationSizeMb: 32, stackSizeMb: 8 },
  });
  let verdict = "the interpreter ended";
  const timer = setTimeout(() => {
    verdict = `longer than ${seconds} seconds`;
    void worker.terminate();
  }, 1000 * Number(seconds));
  // what it prints is read, so that it does not wait, and dropped
  worker.stdout.resume();
  worker.stderr.resume();
  worker.once("message", (message) => {
    verdict = String(message);
    void worker.terminate();
  });
  worker.on("error", (error) => {
    verdict = String(error?.message ?? error);
  });
  worker.on("exit", () => {
    clearTimeout(timer);
    tell?.({ id, verdict: verdict.slice(-500) });
  });
});
tell?.({ ready: true });
