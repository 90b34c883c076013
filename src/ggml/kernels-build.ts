import { execFile } from "node:child_process";
import { mkdirSync, mkdtempSync, renameSync, rmSync } from "node:fs";
import path from "node:path";
import { promisify } from "node:util";
import { CoppiceError } from "../system/errors.js";
import { packageRoot } from "../system/package-root.js";
import { type KernelTarget, kernelFileName, VARIANTS, writableKernelDirectory } from "./kernels.js";

const execute = promisify(execFile);

/** Compilers to try, in order. The environment variable CC comes first. */
const COMPILERS = ["cc", "clang", "gcc"];
/** On Windows: mingw's gcc does not align vectors on the stack (GCC bug 54412), and Microsoft's compiler lacks vector extensions. */
const WINDOWS_COMPILERS = ["zig cc", "python -m ziglang cc"];

const COMMON_FLAGS = ["-std=gnu11", "-O3", "-fPIC", "-fno-math-errno", "-ffp-contract=fast"];

/** A library of kernels that was built. */
export interface KernelBuild {
  readonly file: string;
  readonly compiler: string;
}

/**
 * Compiles the kernels for this machine's architecture, every variant of them, into one library.
 * @throws CoppiceError when there is no compiler, or it fails, with what it said
 */
export async function buildKernels(): Promise<KernelBuild> {
  if (VARIANTS[process.arch] === undefined)
    throw new CoppiceError(`there are no kernels for ${process.arch}; ggml's own are used`);
  const compiler = await findCompiler();
  const file = await compileKernels({
    compiler,
    target: process,
    directory: writableKernelDirectory(),
  });
  return { file, compiler };
}

/** How to compile the kernels for a system. */
export interface KernelCompilation {
  /** A command, with its first arguments. */
  readonly compiler: string;
  readonly target: KernelTarget;
  /** Where the library is to lie. */
  readonly directory: string;
  /** For every call of the compiler, for example the system that it compiles for. */
  readonly flags?: readonly string[] | undefined;
  /** Refuses a compiler that does not know all variants, rather than leaving those out. */
  readonly everyVariant?: boolean | undefined;
}

/**
 * Compiles the kernels for a system.
 * @returns the library's file
 * @throws CoppiceError when the compiler fails, with what it said
 */
export async function compileKernels(options: KernelCompilation): Promise<string> {
  const { compiler, target, directory, flags = [], everyVariant = false } = options;
  const source = (name: string) => path.join(packageRoot, "native", `${name}.c`);
  mkdirSync(directory, { recursive: true });
  const scratch = mkdtempSync(path.join(directory, "build-"));
  const compile = async (name: string, file: string, variantFlags: readonly string[] = []): Promise<string> => {
    const object = path.join(scratch, `${name}.o`);
    await run(compiler, [...flags, ...COMMON_FLAGS, ...variantFlags, "-c", source(file), "-o", object]);
    return object;
  };
  try {
    const [support, threads, ...variants] = await Promise.allSettled([
      compile("support", "support"),
      compile("threads", "threads"),
      ...(VARIANTS[target.arch] ?? []).map(({ name, flags: own }) =>
        compile(name, "variant", [...own, `-DVARIANT=${name}`]),
      ),
    ]);
    const succeeded = variants.filter((variant) => variant.status === "fulfilled");
    // an old compiler does not know the newest instructions
    const needed = everyVariant || succeeded.length === 0 ? variants : succeeded;
    const objects = [...needed, support, threads].map((compiled) => {
      if (compiled.status === "rejected") throw compiled.reason;
      return compiled.value;
    });
    const linked = path.join(scratch, "kernels");
    await run(compiler, [...flags, "-shared", ...linkFlags(target), "-o", linked, ...objects]);
    const file = path.join(directory, kernelFileName(target));
    renameSync(linked, file);
    return file;
  } finally {
    rmSync(scratch, { recursive: true, force: true });
  }
}

function linkFlags({ platform }: KernelTarget): string[] {
  if (platform === "win32") return ["-s"];
  // never unloaded: threads may end after the process has closed its libraries, and their memory is freed by code of ours
  if (platform === "linux") return ["-s", "-Wl,-z,nodelete", "-lm", "-lpthread"];
  return ["-lm", "-lpthread"];
}

async function findCompiler(): Promise<string> {
  const known = process.platform === "win32" ? WINDOWS_COMPILERS : COMPILERS;
  const candidates = process.env.CC ? [process.env.CC, ...known] : known;
  for (const candidate of candidates) {
    try {
      await run(candidate, ["--version"]);
      return candidate;
    } catch {}
  }
  const advice =
    process.platform === "win32"
      ? "install zig's (pip install ziglang)"
      : "install one (Debian: apt-get install gcc libc6-dev; macOS: xcode-select --install)";
  throw new CoppiceError(`no C compiler was found (tried ${candidates.join(", ")}): ${advice} or name it in CC`);
}

/** Runs a compiler, which may be a command with arguments, as in make's CC. */
async function run(compiler: string, args: readonly string[]): Promise<void> {
  const [command = compiler, ...first] = compiler.split(" ");
  try {
    await execute(command, [...first, ...args]);
  } catch (error) {
    const output = (error as { stderr?: string | undefined }).stderr ?? String(error);
    throw new CoppiceError(`${compiler} ${args.join(" ")} failed:\n${output.slice(0, 4000)}`);
  }
}
