/**
 * Makes a folder that runs on a machine without network or Node: Node itself, Coppice with what it depends on, and a check of the machine,
 * packed into parts with their checksums. Wants `npm run build` first, and zig for the kernels.
 *
 *     npm run pack:portable -- [--platform linux-x64] [--cuda] [--part-size 500MB]
 *
 * `--cuda` adds the libraries for NVIDIA's GPUs and, from PyPI, the CUDA runtime that they need; the driver must be there.
 */
import { execFileSync } from "node:child_process";
import { createHash } from "node:crypto";
import {
  chmodSync,
  closeSync,
  cpSync,
  createReadStream,
  mkdirSync,
  mkdtempSync,
  openSync,
  readdirSync,
  renameSync,
  rmSync,
  statSync,
  writeFileSync,
  writeSync,
} from "node:fs";
import { tmpdir } from "node:os";
import path from "node:path";
import process from "node:process";
import { parseArgs } from "node:util";
import { corpus } from "../examples/corpus.js";
import { parseBytes } from "../src/cli/parse.js";
import { PACKAGES, TARGETS, targetName } from "./kernels-prebuild.js";
import { pack } from "./pack.js";

const { values } = parseArgs({
  options: {
    platform: { type: "string", default: `${process.platform}-${process.arch}` },
    cuda: { type: "boolean", default: false },
    "part-size": { type: "string", default: "500MB" },
  },
});
const root = path.resolve(import.meta.dirname, "..");
const target = TARGETS.find((one) => targetName(one) === values.platform);
if (target === undefined || target.platform === "win32")
  throw new Error(
    `--platform is one of ${TARGETS.filter(({ platform }) => platform !== "win32")
      .map(targetName)
      .join(", ")}`,
  );
if (values.cuda && values.platform !== "linux-x64") throw new Error("--cuda is for linux-x64");
const partBytes = parseBytes(values["part-size"]);

const name = `coppice-portable-${values.platform}${values.cuda ? "-cuda" : ""}`;
const folder = path.join(PACKAGES, name);
rmSync(folder, { recursive: true, force: true });
mkdirSync(path.join(folder, "app"), { recursive: true });
const npm = (cwd: string, ...args: string[]) =>
  execFileSync("npm", args, { cwd, stdio: ["ignore", "pipe", "inherit"], encoding: "utf8" });

// Coppice and its dependencies, for the other system if it is one
const tarballs = (await pack([values.platform])).map(({ tarball }) => tarball);
writeFileSync(path.join(folder, "app/package.json"), `${JSON.stringify({ name, private: true })}\n`);
const system = [
  `--os=${target.platform}`,
  `--cpu=${target.arch}`,
  ...(target.libc === undefined ? [] : [`--libc=${target.libc}`]),
];
npm(
  path.join(folder, "app"),
  "install",
  "--omit=dev",
  "--ignore-scripts",
  "--no-audit",
  "--no-fund",
  ...system,
  ...tarballs,
);
const libraries = path.join(folder, "app/node_modules/@node-llama-cpp");
for (const directory of readdirSync(libraries)) {
  const [, os, arch, device] = /^(\w+)-(\w+?)(-[\w-]+)?$/.exec(directory) ?? [];
  const isOther = os !== { darwin: "mac", linux: "linux" }[target.platform as string] || arch !== target.arch;
  if (isOther || (device?.startsWith("-cuda") && !values.cuda))
    rmSync(path.join(libraries, directory), { recursive: true });
}

// Node, from npm
const scratch = mkdtempSync(path.join(tmpdir(), "coppice-portable-"));
const [major] = process.versions.node.split(".");
const [packed = ""] = npm(scratch, "pack", "--silent", `node-${values.platform}@${major}`).trim().split("\n").slice(-1);
execFileSync("tar", ["xf", packed], { cwd: scratch });
renameSyncAcross(path.join(scratch, "package/bin/node"), path.join(folder, "node"));

// the CUDA runtime, from PyPI
mkdirSync(path.join(folder, "lib"));
if (values.cuda) {
  const wheels = path.join(scratch, "wheels");
  const pip = ["-m", "pip", "install", "--quiet", "--no-deps", "--target", wheels];
  execFileSync("python3", [
    ...pip,
    "--platform",
    "manylinux_2_27_x86_64",
    "--only-binary=:all:",
    "nvidia-cuda-runtime~=13.0",
    "nvidia-cublas~=13.0",
  ]);
  for (const file of readdirSync(wheels, { recursive: true, encoding: "utf8" }))
    if (/\.so(\.\d+)*$/.test(file))
      renameSyncAcross(path.join(wheels, file), path.join(folder, "lib", path.basename(file)));
}

mkdirSync(path.join(folder, "data"));
writeFileSync(path.join(folder, "data/stories.txt"), corpus(5, 400));
cpSync(path.join(root, "scripts/portable/check.mjs"), path.join(folder, "check.mjs"));
cpSync(path.join(root, "bench/peers/distill_step.py"), path.join(folder, "peers/distill_step.py"));
const launcher = (script: string) => `#!/bin/sh
here=$(cd "$(dirname "$0")" && pwd)
export LD_LIBRARY_PATH="$here/lib\${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}"
exec "$here/node" "$here/${script}" "$@"
`;
for (const [file, script] of [
  ["coppice", "app/node_modules/coppice/bin/coppice.cjs"],
  ["check", "check.mjs"],
] as const) {
  writeFileSync(path.join(folder, file), launcher(script));
  chmodSync(path.join(folder, file), 0o755);
}
rmSync(scratch, { recursive: true, force: true });

/** Moves a file, also to another disk. */
function renameSyncAcross(from: string, to: string): void {
  try {
    renameSync(from, to);
  } catch {
    cpSync(from, to);
  }
}

// one archive, in parts
const archive = path.join(PACKAGES, `${name}.tar.gz`);
execFileSync("tar", ["czf", archive, "-C", PACKAGES, name]);
for (const old of readdirSync(PACKAGES).filter((file) => file.startsWith(`${name}.tar.gz.`)))
  rmSync(path.join(PACKAGES, old));
const sums: string[] = [];
let part:
  | { readonly file: number; readonly name: string; readonly hash: ReturnType<typeof createHash>; bytes: number }
  | undefined;
const finish = () => {
  if (part === undefined) return;
  closeSync(part.file);
  sums.push(`${part.hash.digest("hex")}  ${part.name}`);
  part = undefined;
};
for await (const chunk of createReadStream(archive, { highWaterMark: 1 << 20 })) {
  let rest = chunk as Buffer;
  while (rest.length > 0) {
    if (part === undefined) {
      const partName = `${name}.tar.gz.${String(sums.length + 1).padStart(3, "0")}`;
      part = {
        file: openSync(path.join(PACKAGES, partName), "w"),
        name: partName,
        hash: createHash("sha256"),
        bytes: 0,
      };
    }
    const now = rest.subarray(0, partBytes - part.bytes);
    writeSync(part.file, now);
    part.hash.update(now);
    part.bytes += now.length;
    rest = rest.subarray(now.length);
    if (part.bytes === partBytes) finish();
  }
}
finish();
rmSync(archive);
writeFileSync(path.join(PACKAGES, `${name}.sha256`), `${sums.join("\n")}\n`);
for (const line of sums) {
  const file = line.split("  ")[1] ?? "";
  console.log(`${path.join("packages", file)}  ${(statSync(path.join(PACKAGES, file)).size / 1e6).toFixed(0)} MB`);
}
console.log(`there: sha256sum -c ${name}.sha256 && cat ${name}.tar.gz.* | tar xz && ./${name}/check`);
