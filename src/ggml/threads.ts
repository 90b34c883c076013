import { readFileSync } from "node:fs";
import koffi from "../system/ffi.js";
import { builtLibrary } from "./kernels.js";

/**
 * Has llama.cpp's contexts in this process keep their threads from one token to the next. node-llama-cpp gives them no pool, and
 * ggml then starts threads for every token, each of which can wait a scheduler tick. To be called when llama.cpp is started, before
 * its first context.
 * @returns whether they do: only on Linux, where our native library is built; elsewhere all works as before
 */
export function keepThreads(): boolean {
  if (!canKeepThreads()) return false;
  const [native, backend] = [builtLibrary(), cpuBackend()];
  if (native === undefined || backend === undefined) return false;
  try {
    const registry = koffi.load(backend).func("ggml_backend_cpu_reg", "intptr_t", [])();
    return koffi.load(native).func("coppice_keep_threads", "int", ["intptr_t"])(registry) === 1;
  } catch {
    return false;
  }
}

/** Whether {@link keepThreads} has what it needs here. */
export const canKeepThreads = (): boolean => process.platform === "linux" && builtLibrary() !== undefined;

/** ggml's CPU backend in this process, ours and llama.cpp's: of those that were looked at, the one that suits the processor best. */
function cpuBackend(): string | undefined {
  const score = (file: string): number => koffi.load(file).func("ggml_backend_score", "int", [])();
  return mappedFiles()
    .filter((file) => /\/libggml-cpu[\w-]*\.so$/.test(file))
    .map((file) => ({ file, score: score(file) }))
    .filter((one) => one.score > 0)
    .sort((a, b) => b.score - a.score)[0]?.file;
}

/** The files that this process has mapped; none where the system does not say. */
function mappedFiles(): string[] {
  try {
    const lines = readFileSync("/proc/self/maps", "utf8").split("\n");
    return [...new Set(lines.map((line) => line.slice(line.indexOf("/"))))];
  } catch {
    return [];
  }
}
