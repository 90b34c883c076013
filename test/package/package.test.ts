import { execFile, execFileSync, spawnSync } from "node:child_process";
import { existsSync, mkdtempSync, readdirSync, readFileSync, realpathSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import path from "node:path";
import { publint } from "publint";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { findZig } from "../../scripts/kernels-prebuild.js";
import { type PackedPackage, pack } from "../../scripts/pack.js";
import { type Registry, startRegistry } from "./registry.js";

const root = path.resolve(import.meta.dirname, "../..");
const MINUTES = 60_000;
const directory = realpathSync(mkdtempSync(path.join(tmpdir(), "coppice-package-")));
const at = (...names: string[]) => path.join(directory, ...names);
const installed = (...names: string[]) => at("node_modules", ...names);

/** Whether there is what builds the packages of kernels. */
function canPack(): boolean {
  try {
    findZig();
    return true;
  } catch (error) {
    console.warn(`skipped the tests of packages: ${error instanceof Error ? error.message : error}`);
    return false;
  }
}
const skipped = !canPack();

let packages: PackedPackage[];
let registry: Registry;

/** The `overrides` that docs/installation.md says to write. */
function documentedOverrides(): unknown {
  const page = readFileSync(path.join(root, "docs/installation.md"), "utf8");
  const [, block = ""] = /```json\n([\s\S]*?)```/.exec(page) ?? [];
  return (JSON.parse(block) as { overrides: unknown }).overrides;
}

/** A command in the user's folder, as a user types it. */
function run(command: string, ...args: string[]) {
  const env = { ...process.env, COPPICE_CACHE: at("cache"), COPPICE_KERNELS: "", NO_COLOR: "1" };
  const { status, stdout, stderr } = spawnSync(command, args, { cwd: directory, encoding: "utf8", env });
  if (status !== 0) throw new Error(`${command} ${args.join(" ")} ended with ${status}:\n${stdout}\n${stderr}`);
  return stdout;
}

const coppice = (...args: string[]) => run("npx", "--no-install", "coppice", ...args);

beforeAll(async () => {
  if (skipped) return;
  packages = await pack([`${process.platform}-${process.arch}`]);
  registry = await startRegistry(
    packages.map((one) => ({
      tarball: one.tarball,
      manifest: JSON.parse(readFileSync(path.join(one.directory, "package.json"), "utf8")) as {
        name: string;
        version: string;
      },
    })),
  );
  writeFileSync(at("package.json"), JSON.stringify({ private: true, overrides: documentedOverrides() }));
  writeFileSync(at(".npmrc"), `registry=${registry.url}/\nreplace-registry-host=never\naudit=false\nfund=false\n`);
  // not by spawnSync: this process answers npm's requests
  await new Promise<void>((resolve, reject) =>
    execFile("npm", ["install", "coppice"], { cwd: directory }, (error, _, stderr) =>
      error === null ? resolve() : reject(new Error(stderr)),
    ),
  );
}, 10 * MINUTES);

afterAll(() => {
  registry?.close();
  rmSync(directory, { recursive: true, force: true });
});

describe.skipIf(skipped)("the package installed from its tarballs", () => {
  it("brings no CUDA libraries where the overrides of docs/installation.md leave them out", () => {
    const backends = readdirSync(installed("@node-llama-cpp"));
    expect(backends.filter((name) => name.includes("cuda"))).toEqual([]);
    expect(backends.length).toBeGreaterThan(0);
  });

  it("explains itself", () => {
    expect(coppice("--help")).toContain("Usage: coppice");
  });

  it("uses the kernels of the prebuilt package", () => {
    const { kernels } = JSON.parse(coppice("doctor", "--device", "cpu", "--json")) as {
      kernels: { inUse: string; file: string };
    };
    expect(path.dirname(kernels.file)).toBe(installed("@coppice", `kernels-${process.platform}-${process.arch}`));
    expect(kernels.inUse).not.toBe("");
  });

  it(
    "compresses the demo's model",
    () => {
      const examples = installed("coppice", "examples");
      const data = path.join(examples, "corpus/stories.txt.gz");
      const sizes = [
        "--sequence-length",
        "128",
        "--samples",
        "16",
        "--refit-samples",
        "16",
        "--tokens",
        "10K",
        "--candidates",
        "2",
      ];
      const out = ["--gguf", "q8_0", "--out", "smaller"];
      coppice("compress", path.join(examples, "tiny-teacher"), "--target", "0.67x", "--data", data, ...sizes, ...out);
      const files = readdirSync(at("smaller"), { recursive: true, encoding: "utf8" });
      const gguf = files.find((file) => file.endsWith(".gguf"));
      expect(gguf).toBeDefined();
      expect(coppice("generate", at("smaller", gguf ?? ""), "--prompt", "Once", "--max-tokens", "8")).not.toBe("");
    },
    5 * MINUTES,
  );

  it.each([
    ["node16", "node16"],
    ["bundler", "esnext"],
  ])("has types that a strict program compiles against, resolved as by %s", (moduleResolution, module) => {
    writeFileSync(
      at("program.mts"),
      `import { compress, UsageError } from "coppice";
import { Backend } from "coppice/ggml";
import { openCheckpoint } from "coppice/models";
const { model } = openCheckpoint("./model");
const backend: Backend = Backend.open({ device: "cpu", threads: 2 });
console.log(model.architecture, backend.kernels?.variant);
const outcome: Promise<unknown> = compress({ model: "./model", target: "0.5x", data: ["a.txt"], out: "b" });
outcome.catch((error: unknown) => console.error(error instanceof UsageError));
// @ts-expect-error a device that is none
Backend.open({ device: "abacus" });
`,
    );
    const compiler = path.join(root, "node_modules/typescript/bin/tsc");
    const types = ["--typeRoots", path.join(root, "node_modules/@types"), "--types", "node"];
    const options = ["--noEmit", "--strict", "--target", "es2023", "--module", module, ...types];
    const { stdout, status } = spawnSync(
      process.execPath,
      [compiler, ...options, "--moduleResolution", moduleResolution, "--pretty", "false", "program.mts"],
      { cwd: directory, encoding: "utf8" },
    );
    // declarations of the packages that we depend on may be wrong (node-llama-cpp's are): skipLibCheck is for those
    const errors = stdout.split("\n").filter((line) => /error TS/.test(line));
    expect(errors.filter((line) => !/^node_modules\/(?!coppice\/)/.test(line))).toEqual([]);
    expect(status === 0 || errors.length > 0).toBe(true);
  });

  it("holds no source maps, whose sources it would lack", () => {
    const files = readdirSync(installed("coppice"), { recursive: true, encoding: "utf8" });
    expect(files.filter((file) => file.endsWith(".map"))).toEqual([]);
    expect(existsSync(installed("coppice/dist/index.js"))).toBe(true);
  });
});

describe.skipIf(skipped)("the packages", () => {
  it("satisfy publint", async () => {
    for (const { directory: pkgDir } of packages)
      expect((await publint({ pkgDir, pack: false, strict: true })).messages).toEqual([]);
  });

  it("have types that Are the types wrong? finds right for every entry point", () => {
    const attw = path.join(root, "node_modules/@arethetypeswrong/cli/dist/index.js");
    const [main] = packages;
    execFileSync(process.execPath, [attw, main?.tarball ?? "", "--profile", "esm-only"], { encoding: "utf8" });
  });
});
