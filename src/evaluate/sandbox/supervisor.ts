/**
 * The process that runs Python programs, each in a worker thread that ends with the program. python.ts starts it without an
 * environment, without access to files other than Pyodide's, and unable to generate code from strings.
 */
import { readFileSync } from "node:fs";
import path from "node:path";
import { Worker } from "node:worker_threads";
import { lockDown, wasm } from "./lockdown.js";
import { BEGUN, type ProgramMessage, type SupervisorMessage, type WorkerData } from "./messages.js";

/** An interpreter that takes longer to start, on however busy a machine, will not. */
const START_SECONDS = 60;

const [pyodide = "", memoryBytes = "0", seconds = "0"] = process.argv.slice(2);
const send = (message: SupervisorMessage) => process.send?.(message);
lockDown(Number(memoryBytes));

const compiled = await wasm.compile(readFileSync(path.join(pyodide, "pyodide.asm.wasm")));
const { loadPyodide } = (await import(path.join(pyodide, "pyodide.mjs"))) as typeof import("pyodide");
// the memory of a started interpreter, so that it need not start again for each program
const interpreter = await loadPyodide({ _makeSnapshot: true, jsglobals: Object.create(null) });
const memory = (interpreter as unknown as { makeMemorySnapshot(): Uint8Array }).makeMemorySnapshot();
const snapshot = new Uint8Array(new SharedArrayBuffer(memory.length));
snapshot.set(memory);

process.on("message", ({ id, program }: ProgramMessage) => {
  const workerData: WorkerData = { pyodide, compiled, snapshot, program, memoryBytes: Number(memoryBytes) };
  const worker = new Worker(new URL("./worker.js", import.meta.url), {
    workerData,
    env: {},
    stdin: false,
    stdout: true,
    stderr: true,
    resourceLimits: { maxOldGenerationSizeMb: 256, maxYoungGenerationSizeMb: 32, stackSizeMb: 8 },
  });
  let verdict = "the interpreter ended";
  const endAfter = (limit: number) =>
    setTimeout(() => {
      verdict = `longer than ${limit} seconds`;
      void worker.terminate();
    }, 1000 * limit);
  let timer = endAfter(START_SECONDS);
  // output is drained, so that the worker does not block, and discarded
  worker.stdout.resume();
  worker.stderr.resume();
  worker.on("message", (message) => {
    if (message === BEGUN) {
      clearTimeout(timer);
      timer = endAfter(Number(seconds));
      return;
    }
    verdict = String(message);
    void worker.terminate();
  });
  worker.on("error", (error) => {
    verdict = String(error instanceof Error ? error.message : error);
  });
  worker.on("exit", () => {
    clearTimeout(timer);
    send({ id, verdict: verdict.slice(-500) });
  });
});
send({ ready: true });
