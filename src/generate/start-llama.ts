import { getLlama, type Llama, LlamaLogLevel } from "node-llama-cpp";
import { type DeviceKind, keepThreads, loadedBuild } from "../ggml/index.js";
import { defined } from "../system/defined.js";
import { CoppiceError } from "../system/errors.js";
import { logOf } from "../system/log.js";

const log = logOf("engine");

const instances = new Map<string, Promise<Llama>>();

/**
 * llama.cpp, of the build that this process computes with itself. It is started only once for a device, because every instance keeps
 * the process alive.
 * @throws CoppiceError when the process has loaded a build without that device, or llama.cpp cannot be started
 */
export function startLlama(device: DeviceKind | "auto", threads?: number): Promise<Llama> {
  const key = `${device} ${threads}`;
  const known = instances.get(key);
  if (known !== undefined) return known;
  const llama = start(device, threads);
  instances.set(key, llama);
  llama.catch(() => instances.delete(key));
  return llama;
}

async function start(device: DeviceKind | "auto", maxThreads: number | undefined): Promise<Llama> {
  const isFree = device === "auto" || device === "cpu"; // every build can compute on the processor
  const build = loadedBuild(device) ?? (device === "cpu" ? false : device);
  if (!isFree && build !== device)
    throw new CoppiceError(
      `llama.cpp cannot be started on ${device}: this process has loaded the libraries for ${build || "the processor"} already`,
    );
  const startOn = (gpu: typeof build) =>
    getLlama(
      defined({
        gpu,
        build: "never" as const,
        logLevel: LlamaLogLevel.error,
        progressLogs: false,
        skipDownload: true,
        maxThreads,
      }),
    );
  try {
    const llama = await startOn(build).catch((error: unknown) => {
      if (!isFree || build === false) throw error;
      log.debug("llama.cpp does not start with this build", { build });
      return startOn(false); // a driver that it cannot use
    });
    keepThreads();
    return llama;
  } catch (error) {
    const reason = error instanceof Error ? error.message : error;
    const hint = device === "cpu" ? "" : ": is its driver installed? (see `coppice doctor`)";
    throw new CoppiceError(`llama.cpp cannot be started on ${device} (${reason})${hint}`);
  }
}
