/**
 * Makes the packages of kernels, one for each system, in `packages/`. zig's C compiler builds for all of them on any machine
 * (`pip install ziglang`).
 *
 *     npm run kernels:prebuild                  all systems
 *     npm run kernels:prebuild -- linux-x64     those that are named
 */
import { execFileSync } from "node:child_process";
import { copyFileSync, mkdirSync, readFileSync, rmSync, statSync, writeFileSync } from "node:fs";
import path from "node:path";
import process from "node:process";
import { pathToFileURL } from "node:url";
import { type KernelTarget, kernelPackage } from "../src/ggml/kernels.js";
import { compileKernels } from "../src/ggml/kernels-build.js";

const root = path.resolve(import.meta.dirname, "..");

/** Where the packages are put together. Not npm workspaces: npm refuses to install a workspace that is for another system. */
export const PACKAGES = path.join(root, "packages");

export interface PrebuiltTarget extends KernelTarget {
  /** The system in zig's words. Versions are the oldest that Node 20 runs on. */
  readonly zig: string;
  /** What the C library must be, as in package.json. node-llama-cpp has ggml for glibc only. */
  readonly libc?: "glibc" | undefined;
  readonly description: string;
}

export const TARGETS: readonly PrebuiltTarget[] = [
  { platform: "linux", arch: "x64", zig: "x86_64-linux-gnu.2.28", libc: "glibc", description: "Linux on x86-64" },
  { platform: "linux", arch: "arm64", zig: "aarch64-linux-gnu.2.28", libc: "glibc", description: "Linux on ARM64" },
  { platform: "darwin", arch: "arm64", zig: "aarch64-macos.11.0", description: "macOS on Apple silicon" },
  { platform: "darwin", arch: "x64", zig: "x86_64-macos.11.0", description: "macOS on x86-64" },
  { platform: "win32", arch: "x64", zig: "x86_64-windows-gnu", description: "Windows on x86-64" },
];

export const targetName = ({ platform, arch }: KernelTarget): string => `${platform}-${arch}`;

/** The main package's version and license, which the kernels share. */
const { version, license } = JSON.parse(readFileSync(path.join(root, "package.json"), "utf8")) as {
  readonly version: string;
  readonly license: string;
};

/** The main package's dependencies on the kernels. Every machine installs the one for its system. */
export const kernelDependencies = (): Record<string, string> =>
  Object.fromEntries(TARGETS.map((target) => [kernelPackage(target), version]));

/**
 * Builds one system's package.
 * @param zig the command that starts zig
 * @returns its folder
 */
export async function prebuild(target: PrebuiltTarget, zig: string): Promise<string> {
  const directory = path.join(PACKAGES, `kernels-${targetName(target)}`);
  rmSync(directory, { recursive: true, force: true }); // a library of an earlier source would be packed too
  mkdirSync(directory, { recursive: true });
  const library = await compileKernels({
    compiler: `${zig} cc`,
    target,
    directory,
    flags: ["-target", target.zig],
    everyVariant: true,
  });
  const { platform, arch, libc, description } = target;
  const manifest = {
    name: kernelPackage(target),
    version,
    description: `Coppice's compute kernels for ${description}.`,
    license,
    type: "commonjs",
    os: [platform],
    cpu: [arch],
    libc: libc === undefined ? undefined : [libc],
    files: [path.basename(library)],
  };
  writeFileSync(path.join(directory, "package.json"), `${JSON.stringify(manifest, null, 2)}\n`);
  writeFileSync(
    path.join(directory, "README.md"),
    `# ${manifest.name}\n\n${manifest.description} Installed by the package \`coppice\`, whose source they are built from.\n`,
  );
  copyFileSync(path.join(root, "LICENSE"), path.join(directory, "LICENSE"));
  return directory;
}

/**
 * The command that starts zig: the environment variable ZIG, `zig`, or PyPI's package.
 * @throws Error when there is none
 */
export function findZig(): string {
  const candidates = ["zig", "python3 -m ziglang", "python -m ziglang"];
  if (process.env.ZIG) candidates.unshift(process.env.ZIG);
  for (const candidate of candidates) {
    const [command = candidate, ...args] = candidate.split(" ");
    try {
      execFileSync(command, [...args, "version"], { stdio: "ignore" });
      return candidate;
    } catch {}
  }
  throw new Error(`zig was not found (tried ${candidates.join(", ")}): pip install ziglang, or name it in ZIG`);
}

/** The targets of these names, all of them for none. */
export function targetsOf(names: readonly string[]): readonly PrebuiltTarget[] {
  const known = TARGETS.map(targetName);
  const unknown = names.filter((name) => !known.includes(name));
  if (unknown.length > 0) throw new Error(`no kernels for ${unknown.join(", ")}; there are ${known.join(", ")}`);
  return names.length === 0 ? TARGETS : TARGETS.filter((target) => names.includes(targetName(target)));
}

if (process.argv[1] !== undefined && import.meta.url === pathToFileURL(process.argv[1]).href) {
  const zig = findZig();
  for (const target of targetsOf(process.argv.slice(2))) {
    const directory = await prebuild(target, zig);
    const { files } = JSON.parse(readFileSync(path.join(directory, "package.json"), "utf8")) as { files: string[] };
    for (const file of files) {
      const kilobytes = Math.round(statSync(path.join(directory, file)).size / 1000);
      console.log(`${path.relative(root, path.join(directory, file))}  ${kilobytes} kB`);
    }
  }
}
