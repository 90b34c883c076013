import { existsSync, readdirSync } from "node:fs";
import { createRequire } from "node:module";
import path from "node:path";
import { CoppiceError } from "../system/errors.js";
import koffi from "../system/ffi.js";
import { logOf } from "../system/log.js";
import { DEVICE_KINDS, type DeviceKind, type GpuKind } from "./device-kinds.js";
import { bindFunctions, type Functions } from "./functions.js";
import { preferredDevice } from "./preferred-device.js";

const log = logOf("engine");

/** The loaded ggml libraries. */
export interface Library {
  readonly functions: Functions;
  /** The folder of the libraries. */
  readonly directory: string;
  readonly version: string;
  readonly commit: string;
}

const PLATFORM = { linux: "linux", darwin: "mac", win32: "win" }[process.platform as string] ?? process.platform;

/** A build of ggml and llama.cpp, installed as an npm package. All contain the CPU backend. */
interface Build {
  /** The GPU that it also contains a backend for; false where none. */
  readonly gpu: GpuKind | false;
  /** The folder of the libraries. */
  readonly directory: string;
}

/** The installed builds for this platform and a kind of device. */
function buildsFor(kind: DeviceKind): Build[] {
  const base = `@node-llama-cpp/${PLATFORM}-${process.arch}`;
  const gpus: readonly (GpuKind | false)[] = kind === "cpu" ? [false, "metal"] : [kind];
  return gpus.flatMap((gpu) => {
    const directory = packageDirectory(gpu === false ? base : `${base}-${gpu}`);
    return directory === undefined ? [] : [{ gpu, directory }];
  });
}

/** The folder of a package's libraries; undefined when the package is not installed. */
function packageDirectory(name: string): string | undefined {
  const require = createRequire(import.meta.url);
  for (const modules of require.resolve.paths(name) ?? []) {
    const bins = path.join(modules, name, "bins");
    if (!existsSync(bins)) continue;
    const folder = readdirSync(bins).find((entry) => !entry.startsWith("_"));
    if (folder !== undefined) return path.join(bins, folder);
  }
  return undefined;
}

/** Folders that may hold the libraries for a kind of device, best first. `auto`: those of the fastest GPU that can be used here. */
export function libraryDirectories(device: DeviceKind | "auto"): string[] {
  const directory = process.env.COPPICE_GGML_DIR;
  if (directory !== undefined && directory !== "") return [path.resolve(directory)];
  const kinds = device === "auto" ? DEVICE_KINDS : [device, ...DEVICE_KINDS];
  const builds = kinds.flatMap((kind) =>
    buildsFor(kind).filter((build) => kind === device || kind === "cpu" || canUse(kind, build.directory)),
  );
  return [...new Set(builds.map((build) => build.directory))];
}

/** Whether a kind of GPU may be there: what drives it is installed. */
function canUse(kind: GpuKind, directory: string): boolean {
  if (kind === "cuda") return cudaWorks(directory);
  return kind === "metal" || vulkanWorks();
}

/** Vulkan 1.2, which ggml's backend needs, as a version number of Vulkan. */
const VULKAN_1_2 = (1 << 22) | (2 << 12);

/** Whether Vulkan's loader is installed, in a version that ggml's backend takes; it loads no driver. */
function vulkanWorks(): boolean {
  try {
    const loader = koffi.load(process.platform === "win32" ? "vulkan-1.dll" : "libvulkan.so.1");
    const version = new Uint32Array(1);
    const status: number = loader.func("vkEnumerateInstanceVersion", "int", ["uint32_t *"])(version);
    return status === 0 && (version[0] ?? 0) >= VULKAN_1_2;
  } catch {
    return false;
  }
}

/** Whether there are an NVIDIA driver and the CUDA libraries, which the package does not contain. */
function cudaWorks(directory: string): boolean {
  const driver = ["/dev/nvidiactl", "/dev/dxg", "C:\\Windows\\System32\\nvcuda.dll"].some((file) => existsSync(file));
  const backend = findLibrary(directory, /^(lib)?ggml-cuda\.(so|dll)$/);
  if (!driver || backend === undefined) return false;
  try {
    koffi.load(backend);
    return true;
  } catch {
    return false;
  }
}

function findLibrary(directory: string, stem: RegExp): string | undefined {
  const file = readdirSync(directory).find((entry) => stem.test(entry));
  return file === undefined ? undefined : path.join(directory, file);
}

const loaded = new Map<string, Library>();

/**
 * Loads backends from a folder: the CPU backend that scores best on this processor, or all others. A GPU's driver costs memory
 * and time even when it is not used (43 MB of LLVM with Mesa's).
 */
function loadBackends(functions: Functions, directory: string, which: "cpu" | "others"): void {
  const files = readdirSync(directory).filter((entry) => /^(lib)?ggml-(?!base)[\w-]+\.(so|dylib|dll)$/.test(entry));
  const isCpu = (file: string) => /^(lib)?ggml-cpu/.test(file);
  if (which === "others") {
    for (const file of files.filter((entry) => !isCpu(entry))) functions.ggml_backend_load(path.join(directory, file));
    return;
  }
  const scored = files.filter(isCpu).map((file) => ({ file, score: scoreOf(path.join(directory, file)) }));
  const best = scored.sort((a, b) => b.score - a.score)[0];
  if (best === undefined || best.score <= 0) functions.ggml_backend_load_all_from_path(directory);
  else functions.ggml_backend_load(path.join(directory, best.file));
}

/** How well a CPU backend suits this processor; 0 when it cannot run. */
export function scoreOf(file: string): number {
  try {
    return koffi.load(file).func("ggml_backend_score", "int", [])();
  } catch {
    return 0;
  }
}

/**
 * Loads ggml from a folder: first `ggml-base`, then the loader `ggml`, then the CPU backend next to them.
 * @throws CoppiceError when the folder lacks the libraries or they are from another release
 */
function loadFrom(directory: string): Library {
  const known = loaded.get(directory);
  if (known !== undefined) return known;
  if (!existsSync(directory))
    throw new CoppiceError(`ggml: ${directory} does not exist (COPPICE_GGML_DIR names the folder of libggml-base)`);
  const extension = "(\\.so|\\.dylib|\\.dll)(\\.\\d+)*$";
  const basePath = findLibrary(directory, new RegExp(`^(lib)?ggml-base${extension}`));
  const loaderPath = findLibrary(
    directory,
    new RegExp(`^(lib)?ggml(\\.(cuda|vulkan|metal))?(\\.v[\\d.]+)?${extension}`),
  );
  if (basePath === undefined || loaderPath === undefined)
    throw new CoppiceError(
      `ggml: ${directory} does not contain libggml-base and libggml; COPPICE_GGML_DIR must name their folder`,
    );
  let functions: Functions;
  try {
    functions = bindFunctions(koffi.load(basePath, { global: true }), koffi.load(loaderPath, { global: true }));
  } catch (error) {
    throw new CoppiceError(
      `ggml: the libraries in ${directory} are not compatible with this version of Coppice (${error instanceof Error ? error.message : error})`,
    );
  }
  // ggml logs to standard error by default. A native function without effect serves as the log callback, because a JavaScript
  // function cannot be called from ggml's threads.
  if (process.env.COPPICE_DEBUG === undefined) {
    const silent = BigInt(koffi.load(basePath).symbol("ggml_time_init") as bigint);
    functions.ggml_log_set(silent as never, null);
  }
  loadBackends(functions, directory, "cpu");
  const library = {
    functions,
    directory,
    version: functions.ggml_version(),
    commit: functions.ggml_commit(),
  };
  loaded.set(directory, library);
  log.debug("ggml loaded", { directory, version: library.version, commit: library.commit });
  return library;
}

let current: Library | undefined;
let othersLoaded = false;
/**
 * Loads ggml once per process. Two builds of it cannot be loaded into one process, so the first requested device decides.
 * @throws CoppiceError when none is installed, naming what to install
 */
export function loadLibrary(device: DeviceKind | "auto" = "auto"): Library {
  current ??= firstLibrary(device === "auto" || device === "cpu" ? preferredDevice() : device);
  if (device !== "cpu" && !othersLoaded) {
    othersLoaded = true;
    // ggml has cuBLAS compute f32 in TF32, of 10 bits: too few for the factorizations of a refit
    process.env.NVIDIA_TF32_OVERRIDE ??= "0";
    loadBackends(current.functions, current.directory, "others");
  }
  return current;
}

/**
 * The GPU that the loaded build is for, false where for none; undefined for libraries that COPPICE_GGML_DIR names. llama.cpp must be of
 * the same build: another brings a CPU backend of its own, and aborts when it meets tensors that belong to the first one's.
 * @param device decides where nothing is loaded yet
 * @throws CoppiceError when none is installed
 */
export function loadedBuild(device: DeviceKind | "auto"): GpuKind | false | undefined {
  current ??= firstLibrary(device === "auto" ? preferredDevice() : device);
  const { directory } = current;
  return DEVICE_KINDS.flatMap(buildsFor).find((build) => build.directory === directory)?.gpu;
}

/** ggml's functions that need no device, such as conversions. Does not load GPU drivers. */
export function loadFunctions(): Functions {
  current ??= firstLibrary(preferredDevice());
  return current.functions;
}

function firstLibrary(device: DeviceKind | "auto"): Library {
  const [directory] = libraryDirectories(device);
  if (directory === undefined)
    throw new CoppiceError(
      `no compute library is installed for ${process.platform} ${process.arch}: run \`npm install @node-llama-cpp/${PLATFORM}-${process.arch}\`, ` +
        `or set COPPICE_GGML_DIR to a folder that contains libggml-base, libggml and their backends`,
    );
  return loadFrom(directory);
}
