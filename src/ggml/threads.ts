import { readFileSync } from "node:fs";
import koffi from "../system/ffi.js";
import { builtLibrary } from "./kernels.js";
import { scoreOf } from "./library.js";

/**
 * Makes llama.cpp's contexts in this process keep their threads from one token to the next. node-llama-cpp does not give them a
 * thread pool, so ggml starts threads for every token, each of which can wait for a scheduler tick. Call it after loading
 * llama.cpp and before creating the first context.
 * @returns whether threads are kept: only on Linux with our native library; nothing changes elsewhere
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

/** Whether {@link keepThreads} can work on this machine. */
export const canKeepThreads = (): boolean => process.platform === "linux" && builtLibrary() !== undefined;

/** The CPU backend of ggml that this process uses: of those mapped, the one that scores best on this processor. */
function cpuBackend(): string | undefined {
  return mappedFiles()
    .filter((file) => /\/libggml-cpu[\w-]*\.so$/.test(file))
    .map((file) => ({ file, score: scoreOf(file) }))
    .filter((one) => one.score > 0)
    .sort((a, b) => b.score - a.score)[0]?.file;
}

/** The files mapped into this process; none where the system does not list them. */
function mappedFiles(): string[] {
  try {
    const lines = readFileSync("/proc/self/maps", "utf8").split("\n");
    return [...new Set(lines.map((line) => line.slice(line.indexOf("/"))))];
  } catch {
    return [];
  }
}
