import { createHash } from "node:crypto";
import { accessSync, constants, existsSync, mkdirSync, readdirSync, readFileSync } from "node:fs";
import path from "node:path";
import { CoppiceError, UsageError } from "../system/errors.js";
import koffi from "../system/ffi.js";
import { cacheDirectory } from "../system/files.js";
import { packageRoot } from "../system/package-root.js";
import { DTYPE_ID } from "./dtype.js";
import type { Functions, Pointer } from "./functions.js";

/**
 * Our own kernels for the processor, in C (`native/`): optional, since ggml computes everything without them. They plug in as
 * ggml custom ops, so ggml's threads run them.
 */
export interface Kernels {
  /** Which instruction set they use. */
  readonly variant: Variant;
  /** The address of a kernel, for `ggml_custom_4d`. */
  readonly address: (name: KernelName) => Pointer;
}

/** The functions of `native/`, without prefix. */
export const KERNEL_NAMES = [
  ...(["matmul", "attention", "attention_back"] as const),
  ...(["divergence", "divergence_back", "cross_entropy", "cross_entropy_back"] as const),
  ...(["norm", "norm_back", "rope", "concat_last"] as const),
  ...(["gelu", "gelu_back", "gated", "gated_back", "soft_cap", "soft_cap_back"] as const),
  ...(["xielu", "xielu_back"] as const),
  ...(["squared_means", "cosines"] as const),
  ...(["adamw", "add_rows", "sum_squares"] as const),
] as const;
export type KernelName = (typeof KERNEL_NAMES)[number];

/** Instruction sets that kernels are compiled for, best first, and the compiler's flags for each. */
export const VARIANTS: Readonly<
  Record<string, readonly { readonly name: string; readonly flags: readonly string[] }[]>
> = {
  x64: [
    { name: "avx512bf16", flags: [..."f bw dq vl bf16".split(" ").map((set) => `-mavx512${set}`), "-mfma", "-mf16c"] },
    { name: "avx512", flags: [..."f bw dq vl".split(" ").map((set) => `-mavx512${set}`), "-mfma", "-mf16c"] },
    { name: "avx2", flags: ["-mavx2", "-mfma", "-mf16c"] },
  ],
  arm64: [
    { name: "neonbf16", flags: ["-march=armv8.6-a"] },
    { name: "neon", flags: [] },
  ],
};
export type Variant = string;

/** Where their source lies. */
const sourceDirectory = path.join(packageRoot, "native");

/** The library's file name carries a digest of what it is built from: another source or flag, another file. */
export function kernelFileName(): string {
  const hash = createHash("sha256").update(JSON.stringify(VARIANTS[process.arch] ?? []));
  for (const file of readdirSync(sourceDirectory).sort())
    if (/\.[ch]$/.test(file)) hash.update(`\0${file}\0`).update(readFileSync(path.join(sourceDirectory, file)));
  return `kernels-${process.platform}-${process.arch}-${hash.digest("hex").slice(0, 12)}.so`;
}

/** Folders in which a built library may lie: the package's own, and the user's where that cannot be written. */
export const kernelDirectories = (): string[] => [
  path.join(sourceDirectory, "build"),
  path.join(cacheDirectory(), "kernels"),
];

/** The first of the folders that can be written. */
export function writableKernelDirectory(): string {
  for (const directory of kernelDirectories()) {
    try {
      mkdirSync(directory, { recursive: true });
      accessSync(directory, constants.W_OK);
      return directory;
    } catch {}
  }
  throw new CoppiceError(`the kernels can be put in none of ${kernelDirectories().join(", ")}: none can be written`);
}

/** Whether kernels are in use, and if not, why and what to do. */
export type KernelStatus = { readonly kernels: Kernels } | { readonly kernels: undefined; readonly reason: string };

const NOT_BUILT =
  "not built: `coppice doctor --build` makes them, and training several times faster (a C compiler is needed)";

/**
 * Loads the kernels for this processor.
 * @param wish `auto` takes the best variant that the processor has (COPPICE_KERNELS decides where it is set), `none` none,
 * a name that variant
 * @throws UsageError when a named variant is not there
 */
export function loadKernels(functions: Functions, wish: "auto" | "none" | Variant = "auto"): KernelStatus {
  const wanted = wish === "auto" ? process.env.COPPICE_KERNELS || "auto" : wish;
  if (wanted === "none") return { kernels: undefined, reason: "switched off" };
  const known = VARIANTS[process.arch] ?? [];
  if (wanted !== "auto" && !known.some(({ name }) => name === wanted))
    throw new UsageError(
      `there are no kernels "${wanted}" for ${process.arch}, only ${known.map((v) => v.name).join(", ") || "none"}`,
    );
  const status = open(functions);
  if (!("variants" in status)) {
    if (wanted !== "auto") throw new UsageError(`the kernels "${wanted}" cannot be used: ${status.reason}`);
    return status;
  }
  const chosen = status.variants.find(({ variant }) => wanted === "auto" || variant === wanted);
  if (chosen !== undefined) return { kernels: chosen };
  if (wanted !== "auto") throw new UsageError(`this processor cannot run the kernels "${wanted}"`);
  return { kernels: undefined, reason: `this processor has none of ${known.map(({ name }) => name).join(", ")}` };
}

/** The variants that this processor can run, best first. */
export function availableKernels(functions: Functions): Variant[] {
  const status = open(functions);
  return "variants" in status ? status.variants.map(({ variant }) => variant) : [];
}

type Opened = { readonly variants: readonly Kernels[] } | { readonly kernels: undefined; readonly reason: string };
const openedFiles = new Map<string, Opened>();

/** Our native library, where it is built from the source as it is. */
export const builtLibrary = (): string | undefined =>
  kernelDirectories()
    .map((directory) => path.join(directory, kernelFileName()))
    .find((candidate) => existsSync(candidate));

function open(functions: Functions): Opened {
  if (VARIANTS[process.arch] === undefined) return { kernels: undefined, reason: `there are none for ${process.arch}` };
  const file = builtLibrary();
  if (file === undefined) return { kernels: undefined, reason: NOT_BUILT };
  const before = openedFiles.get(file);
  if (before !== undefined) return before;
  const opened = openFile(functions, file);
  openedFiles.set(file, opened);
  return opened;
}

function openFile(functions: Functions, file: string): Opened {
  try {
    const library = koffi.load(file);
    const describe = library.func("coppice_describe", "void", ["intptr_t", "_Out_ int64_t *"]);
    if (!readsTensors(functions, describe))
      return { kernels: undefined, reason: "this release of ggml lays its tensors out in another way" };
    const supports = library.func("coppice_supports", "int", ["const char *"]);
    const names = (VARIANTS[process.arch] ?? []).map(({ name }) => name).filter((name) => supports(name) === 1);
    const variants = names.flatMap((variant): Kernels[] => {
      try {
        const addresses = new Map(
          KERNEL_NAMES.map((name) => [name, BigInt(library.symbol(`coppice_${variant}_${name}`) as bigint) as Pointer]),
        );
        return [{ variant, address: (name) => addresses.get(name) as Pointer }];
      } catch {
        return []; // the compiler that built the library did not know this instruction set
      }
    });
    return { variants };
  } catch (error) {
    return {
      kernels: undefined,
      reason: `${file} cannot be loaded: ${error instanceof Error ? error.message : error}`,
    };
  }
}

/** The kernels read ggml's tensor records: whether they see in one what ggml itself says of it. */
function readsTensors(f: Functions, describe: (tensor: Pointer, out: BigInt64Array) => void): boolean {
  const context = f.ggml_init(f.ggml_tensor_overhead() * 4);
  try {
    const tensor = f.ggml_new_tensor_4d(context, DTYPE_ID.bf16, 3, 5, 7, 2);
    const node = f.ggml_permute(context, tensor, 1, 0, 2, 3);
    const seen = new BigInt64Array(11);
    describe(node, seen);
    const expected = [DTYPE_ID.bf16, 5, 3, 7, 2, 6, 2, 30, 210].map(BigInt);
    const data = f.ggml_get_data(node) ?? 0n;
    return expected.every((value, i) => seen[i] === value) && seen[9] === tensor && seen[10] === data;
  } finally {
    f.ggml_free(context);
  }
}
