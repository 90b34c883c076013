import { createHash } from "node:crypto";
import { accessSync, constants, existsSync, mkdirSync, readdirSync, readFileSync } from "node:fs";
import { createRequire } from "node:module";
import path from "node:path";
import { CoppiceError, UsageError } from "../system/errors.js";
import koffi from "../system/ffi.js";
import { cacheDirectory } from "../system/files.js";
import { packageRoot } from "../system/package-root.js";
import { DTYPE_ID } from "./dtype.js";
import type { Functions, Pointer } from "./functions.js";
import { fastestVariant, type KernelTimes, type TimedVariant, type Variant } from "./kernel-choice.js";

/**
 * Our own kernels for the processor, in C (`native/`): optional, since ggml computes everything without them. They plug in as
 * ggml custom ops, so ggml's threads run them.
 */
export interface Kernels {
  /** Which instruction set they use. */
  readonly variant: Variant;
  /** Whether products in bf16 are of integers with a scale instead, so that those of numbers in bf16 are not exact. */
  readonly multipliesIntegers: boolean;
  /** The file of the library that they come from. */
  readonly file: string;
  /** The address of a kernel, for `ggml_custom_4d`. */
  readonly address: (name: KernelName) => Pointer;
}

/** The functions of `native/`, without prefix. */
export const KERNEL_NAMES = [
  "matmul",
  "attention",
  "attention_back",
  "divergence",
  "divergence_back",
  "cross_entropy",
  "cross_entropy_back",
  "norm",
  "norm_back",
  "rope",
  "concat_last",
  "gelu",
  "gelu_back",
  "gated",
  "gated_back",
  "soft_cap",
  "soft_cap_back",
  "xielu",
  "xielu_back",
  "squared_means",
  "cosines",
  "adamw",
  "adamw8",
  "add_rows",
  "sum_squares",
] as const;
/**
 * A function of `native/`.
 * @useDeclaredType
 */
export type KernelName = (typeof KERNEL_NAMES)[number];

const AVX2 = ["-mavx2", "-mfma", "-mf16c"];
const AVX512 = ["-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl", "-mfma", "-mf16c"];

const NEON_BF16 = ["-mcpu=generic+bf16"];

const INTEGER_PAIRS = "-DINTEGER_PAIRS";

/** An instruction set that kernels are compiled for, and the compiler's flags for it. */
interface CompiledVariant {
  readonly name: string;
  readonly flags: readonly string[];
  /** Computes as a better processor would, slowly: taken by name only, to check what that computes. */
  readonly emulates?: string | undefined;
}

/** Instruction sets by architecture, best first. */
export const VARIANTS: Readonly<Record<string, readonly CompiledVariant[]>> = {
  x64: [
    { name: "amxbf16", flags: [...AVX512, "-mavx512bf16", "-mamx-tile", "-mamx-bf16"] },
    { name: "avx512bf16", flags: [...AVX512, "-mavx512bf16"] },
    { name: "avx512vnni", flags: [...AVX512, "-mavx512vnni", INTEGER_PAIRS] },
    { name: "avx512", flags: AVX512 },
    { name: "avxvnni", flags: [...AVX2, "-mavxvnni", INTEGER_PAIRS] },
    { name: "avx2int16", flags: [...AVX2, INTEGER_PAIRS] },
    { name: "avx2", flags: AVX2 },
    { name: "emulated", flags: [...AVX2, "-DEMULATE_TILES"], emulates: "amxbf16" },
  ],
  arm64: [
    { name: "neonbfmmla", flags: [...NEON_BF16, "-DBF16_MATRICES"] },
    { name: "neonbf16", flags: NEON_BF16 },
    { name: "neon", flags: [] },
  ],
};
/** A system that a library of kernels is for, in Node's words. */
export interface KernelTarget {
  readonly platform: string;
  readonly arch: string;
}

/** The package that carries the kernels built for a system. */
export const kernelPackage = ({ platform, arch }: KernelTarget = process): string =>
  `@coppice/kernels-${platform}-${arch}`;

/** Where their source lies. */
const sourceDirectory = path.join(packageRoot, "native");

const EXTENSIONS: Readonly<Record<string, string>> = { darwin: "dylib", win32: "dll" };

/** The library's file name carries a digest of what it is built from: another source or flag, another file. */
export function kernelFileName({ platform, arch }: KernelTarget = process): string {
  const hash = createHash("sha256").update(JSON.stringify(VARIANTS[arch] ?? []));
  for (const file of readdirSync(sourceDirectory).sort())
    if (/\.[ch]$/.test(file)) hash.update(`\0${file}\0`).update(readFileSync(path.join(sourceDirectory, file)));
  const digest = hash.digest("hex").slice(0, 12);
  return `kernels-${platform}-${arch}-${digest}.${EXTENSIONS[platform] ?? "so"}`;
}

/** Folders in which a library built on this machine may lie: the package's own, and the user's where that cannot be written. */
export const kernelDirectories = (): string[] => [
  path.join(sourceDirectory, "build"),
  path.join(cacheDirectory(), "kernels"),
];

/** The folder of the installed package of kernels, if there is one. */
function prebuiltDirectory(): string | undefined {
  try {
    return path.dirname(createRequire(import.meta.url).resolve(`${kernelPackage()}/package.json`));
  } catch {
    return undefined;
  }
}

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

/** Why there is no library, and what to do. */
function missing(): string {
  const found =
    prebuiltDirectory() === undefined
      ? `not installed (${kernelPackage()} is an optional dependency)`
      : `of another version in ${kernelPackage()}`;
  return `${found} and not built: \`coppice doctor --build\` makes them, and training several times faster (a C compiler is needed)`;
}

/**
 * Loads the kernels for this processor.
 * @param wish `auto` takes the variant that was measured to be the fastest (COPPICE_KERNELS decides where it is set), `none` none,
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
  const name = wanted === "auto" ? fastestOf(status.variants) : wanted;
  const chosen = status.variants.find(({ variant }) => variant === name);
  if (chosen !== undefined) return { kernels: chosen };
  if (wanted !== "auto") throw new UsageError(`this processor cannot run the kernels "${wanted}"`);
  return { kernels: undefined, reason: `this processor has none of ${known.map(({ name }) => name).join(", ")}` };
}

/** The variants that this processor can run, best first, without those that emulate another. */
export const availableKernels = (functions: Functions): Variant[] =>
  openedVariants(functions).flatMap(({ variant, emulates }) => (emulates === undefined ? [variant] : []));

/** The variants that compute as a better processor would, to check what that computes. */
export const emulatedKernels = (functions: Functions): Variant[] =>
  openedVariants(functions).flatMap(({ variant, emulates }) => (emulates === undefined ? [] : [variant]));

function openedVariants(functions: Functions): readonly LoadedVariant[] {
  const status = open(functions);
  return "variants" in status ? status.variants : [];
}

/** What the variants took that this processor can run; undefined where there are fewer than two. */
export const kernelTimes = (functions: Functions): KernelTimes | undefined => timesOf(openedVariants(functions));

const fastestOf = (variants: readonly LoadedVariant[]): Variant | undefined =>
  timesOf(variants)?.chosen ?? variants.find(({ emulates }) => emulates === undefined)?.variant;

function timesOf(variants: readonly LoadedVariant[]): KernelTimes | undefined {
  const real = variants.filter(({ emulates }) => emulates === undefined);
  const [first, second] = real;
  return first === undefined || second === undefined ? undefined : fastestVariant(real, first.file);
}

type LoadedVariant = Kernels & TimedVariant & Pick<CompiledVariant, "emulates">;
type Opened =
  | { readonly variants: readonly LoadedVariant[] }
  | { readonly kernels: undefined; readonly reason: string };
const openedFiles = new Map<string, Opened>();

/** Our native library for the source as it is: from the installed package, or else built on this machine. */
export function builtLibrary(): string | undefined {
  const prebuilt = prebuiltDirectory();
  return [...(prebuilt === undefined ? [] : [prebuilt]), ...kernelDirectories()]
    .map((directory) => path.join(directory, kernelFileName()))
    .find((candidate) => existsSync(candidate));
}

function open(functions: Functions): Opened {
  if (VARIANTS[process.arch] === undefined) return { kernels: undefined, reason: `there are none for ${process.arch}` };
  const file = builtLibrary();
  if (file === undefined) return { kernels: undefined, reason: missing() };
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
    const supported = (VARIANTS[process.arch] ?? []).filter(({ name }) => supports(name) === 1);
    const variants = supported.flatMap(({ name: variant, emulates, flags }): LoadedVariant[] => {
      try {
        const addresses = new Map(
          KERNEL_NAMES.map((name) => [name, BigInt(library.symbol(`coppice_${variant}_${name}`) as bigint) as Pointer]),
        );
        const workload = library.func(`coppice_${variant}_workload`, "void", ["void *", "void *"]);
        const multipliesIntegers = flags.includes(INTEGER_PAIRS);
        return [
          { variant, multipliesIntegers, emulates, file, address: (name) => addresses.get(name) as Pointer, workload },
        ];
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
