import { existsSync } from "node:fs";
import { availableParallelism, cpus } from "node:os";
import {
  availableKernels,
  Backend,
  type BackendOptions,
  type DeviceKind,
  type KernelTimes,
  kernelTimes,
  libraryDirectories,
  listDevices,
  loadKernels,
  loadLibrary,
} from "../ggml/index.js";
import { cacheDirectory } from "../system/files.js";
import { freeMemory, memoryLimit } from "../system/memory.js";

/** Hardware and libraries that were found, and which of them are used. */
export interface Diagnosis {
  readonly node: string;
  readonly platform: string;
  readonly cpu: string;
  readonly cores: number;
  readonly memoryBytes: number;
  readonly freeMemoryBytes: number;
  readonly ggml: { readonly version: string; readonly commit: string; readonly directory: string };
  /** Folders with a build of ggml, best first. */
  readonly installed: readonly string[];
  readonly devices: readonly FoundDevice[];
  readonly chosenDevice: string;
  readonly kernels: {
    /** Null where ggml's own are used; `reason` says why. */
    readonly inUse: string | null;
    /** The library that has them. */
    readonly file?: string | undefined;
    readonly available: readonly string[];
    /** Milliseconds that each took for a piece of a training step on one thread, and which is chosen by that. */
    readonly times?: Pick<KernelTimes, "milliseconds" | "chosen"> | undefined;
    readonly reason?: string | undefined;
  };
  readonly threads: {
    readonly inUse: number;
    /** Milliseconds that numbers of threads took for the same work; absent where there is nothing to choose. */
    readonly milliseconds?: Readonly<Record<string, number>> | undefined;
  };
  readonly cache: string;
  readonly cacheExists: boolean;
}

export interface FoundDevice {
  readonly kind: DeviceKind;
  readonly name: string;
  readonly description: string;
  readonly memoryTotalBytes: number;
}

/** Looks at the machine as a job with these options would. @throws UsageError where there is no such device */
export async function diagnose(options: BackendOptions): Promise<Diagnosis> {
  const library = loadLibrary(options.device);
  const backend = Backend.open(options);
  const chosenDevice = backend.device.name;
  const { variant: inUse = null, file } = backend.kernels ?? {};
  const threadTimes = await backend.measureThreads();
  const { threads } = backend;
  backend.free();
  const status = loadKernels(library.functions);
  const whyNone = status.kernels === undefined ? status.reason : `${chosenDevice} has its own`;
  const cache = cacheDirectory();
  return {
    node: process.version,
    platform: `${process.platform} ${process.arch}`,
    cpu: cpus()[0]?.model.trim() ?? "unknown",
    cores: availableParallelism(),
    memoryBytes: memoryLimit(),
    freeMemoryBytes: freeMemory(),
    ggml: { version: library.version, commit: library.commit, directory: library.directory },
    installed: libraryDirectories("auto"),
    devices: listDevices(library).map(({ kind, name, description, memoryTotalBytes }) => ({
      kind,
      name,
      description,
      memoryTotalBytes,
    })),
    chosenDevice,
    kernels: {
      inUse,
      file,
      available: availableKernels(library.functions),
      times: kernelTimes(library.functions),
      reason: inUse === null ? whyNone : undefined,
    },
    threads: { inUse: threads, milliseconds: threadTimes && Object.fromEntries(threadTimes) },
    cache,
    cacheExists: existsSync(cache),
  };
}
