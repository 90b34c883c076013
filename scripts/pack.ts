/**
 * Makes what is published: the main package and the packages of kernels, as tarballs in `packages/`. Wants `npm run build` first.
 *
 *     npm run pack                  kernels for all systems
 *     npm run pack -- linux-x64     for those that are named
 */
import { execFileSync } from "node:child_process";
import { cpSync, existsSync, mkdirSync, readFileSync, rmSync, statSync, writeFileSync } from "node:fs";
import path from "node:path";
import process from "node:process";
import { pathToFileURL } from "node:url";
import { findZig, kernelDependencies, PACKAGES, prebuild, targetsOf } from "./kernels-prebuild.js";

const root = path.resolve(import.meta.dirname, "..");

interface Packed {
  readonly filename: string;
  readonly files: readonly { readonly path: string }[];
}

/** What npm packs of a folder. Its scripts do not run: they would build again. */
function npmPack(directory: string, ...args: readonly string[]): Packed {
  const output = execFileSync("npm", ["pack", "--json", "--ignore-scripts", ...args], {
    cwd: directory,
    encoding: "utf8",
    maxBuffer: 64 << 20,
    shell: process.platform === "win32", // npm is a script there
    stdio: ["ignore", "pipe", "ignore"],
  });
  const parsed = JSON.parse(output) as readonly Packed[] | Record<string, Packed>; // npm 11 names them
  const [packed] = Object.values(parsed);
  if (packed === undefined) throw new Error(`npm packed nothing of ${directory}`);
  return packed;
}

/**
 * The main package as it is published. The kernels become dependencies here and not in the repository's package.json, because
 * `npm ci` refuses a lock file without optional dependencies that are not published yet.
 * @returns its folder
 */
function stageMain(): string {
  const directory = path.join(PACKAGES, "coppice");
  rmSync(directory, { recursive: true, force: true });
  const { files } = npmPack(root, "--dry-run");
  const stale = files.filter(({ path: file }) => isStale(file));
  if (stale.length > 0)
    throw new Error(
      `dist holds what src does not: ${stale.map((file) => file.path).join(", ")}; delete dist and build again`,
    );
  for (const { path: file } of files) {
    const target = path.join(directory, file);
    mkdirSync(path.dirname(target), { recursive: true });
    cpSync(path.join(root, file), target);
  }
  const {
    private: _,
    scripts: __,
    devDependencies: ___,
    ...manifest
  } = JSON.parse(readFileSync(path.join(root, "package.json"), "utf8")) as Record<string, unknown> & {
    readonly optionalDependencies: Record<string, string>;
  };
  const published = {
    ...manifest,
    optionalDependencies: { ...kernelDependencies(), ...manifest.optionalDependencies },
  };
  writeFileSync(path.join(directory, "package.json"), `${JSON.stringify(published, null, 2)}\n`);
  return directory;
}

/** Whether a module's source was deleted after it was compiled. */
function isStale(file: string): boolean {
  const [, module] = /^dist\/(?!web\/)(.*)\.(?:d\.ts|js)$/.exec(file) ?? [];
  return module !== undefined && ![".ts", ".js"].some((end) => existsSync(path.join(root, "src", module + end)));
}

export interface PackedPackage {
  readonly tarball: string;
  /** The folder that was packed. */
  readonly directory: string;
}

/** Packs the main package and the kernels of these systems. */
export async function pack(systems: readonly string[]): Promise<PackedPackage[]> {
  if (!existsSync(path.join(root, "dist/index.js"))) throw new Error("there is no dist: npm run build makes it");
  const zig = findZig();
  const directories = [stageMain()];
  for (const target of targetsOf(systems)) directories.push(await prebuild(target, zig));
  return directories.map((directory) => ({
    directory,
    tarball: path.join(PACKAGES, npmPack(directory, "--pack-destination", PACKAGES).filename),
  }));
}

if (process.argv[1] !== undefined && import.meta.url === pathToFileURL(process.argv[1]).href)
  for (const { tarball } of await pack(process.argv.slice(2)))
    console.log(`${path.relative(root, tarball)}  ${Math.round(statSync(tarball).size / 1000)} kB`);
