import { execFile } from "node:child_process";
import { mkdtempSync, renameSync, rmSync } from "node:fs";
import path from "node:path";
import { promisify } from "node:util";
import { CoppiceError } from "../system/errors.js";
import { packageRoot } from "../system/package-root.js";
import { kernelFileName, VARIANTS, writableKernelDirectory } from "./kernels.js";

const execute = promisify(execFile);

/** Compilers to try, in order. The environment variable CC comes first. */
const COMPILERS = ["cc", "clang", "gcc"];
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
  const variants = VARIANTS[process.arch];
  if (variants === undefined || process.platform === "win32")
    throw new CoppiceError(`there are no kernels for ${process.platform} on ${process.arch}; ggml's own are used`);
  const compiler = await findCompiler();
  const directory = writableKernelDirectory();
  const source = (name: string) => path.join(packageRoot, "native", name);
  const scratch = mkdtempSync(path.join(directory, "build-"));
  try {
    const objects: string[] = [];
    const failures: CoppiceError[] = [];
    for (const { name, flags } of variants) {
      const object = path.join(scratch, `${name}.o`);
      try {
        await compile(compiler, [
          ...COMMON_FLAGS,
          ...flags,
          `-DVARIANT=${name}`,
          "-c",
          source("variant.c"),
          "-o",
          object,
        ]);
        objects.push(object);
      } catch (error) {
        failures.push(error as CoppiceError); // an old compiler does not know the newest instructions
      }
    }
    if (objects.length === 0 && failures[0] !== undefined) throw failures[0];
    for (const name of ["support", "threads"]) {
      const object = path.join(scratch, `${name}.o`);
      await compile(compiler, [...COMMON_FLAGS, "-c", source(`${name}.c`), "-o", object]);
      objects.push(object);
    }
    const built = path.join(scratch, "kernels.so");
    // never unloaded: threads may end after the process has closed its libraries, and their memory is freed by code of ours
    await compile(compiler, [
      "-shared",
      ...(process.platform === "linux" ? ["-Wl,-z,nodelete"] : []),
      "-o",
      built,
      ...objects,
      "-lm",
      "-lpthread",
    ]);
    const file = path.join(directory, kernelFileName());
    renameSync(built, file);
    return { file, compiler };
  } finally {
    rmSync(scratch, { recursive: true, force: true });
  }
}

async function findCompiler(): Promise<string> {
  const candidates = [...(process.env.CC ? [process.env.CC] : []), ...COMPILERS];
  for (const candidate of candidates) {
    try {
      await execute(candidate, ["--version"]);
      return candidate;
    } catch {}
  }
  throw new CoppiceError(
    `no C compiler was found (tried ${candidates.join(", ")}): install one (Debian: apt-get install gcc libc6-dev; macOS: xcode-select --install) or name it in CC`,
  );
}

async function compile(compiler: string, args: readonly string[]): Promise<void> {
  try {
    await execute(compiler, [...args]);
  } catch (error) {
    const said = (error as { stderr?: string | undefined }).stderr ?? String(error);
    throw new CoppiceError(`${compiler} ${args.join(" ")} failed:\n${said.slice(0, 4000)}`);
  }
}
