import { mkdtempSync, readdirSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import path from "node:path";
import { afterAll, describe, expect, it } from "vitest";
import { kernelDependencies, TARGETS, targetsOf } from "../../scripts/kernels-prebuild.js";
import { availableKernels, loadKernels, loadLibrary } from "../../src/ggml/index.js";
import { builtLibrary, kernelFileName, kernelPackage, VARIANTS } from "../../src/ggml/kernels.js";
import { compileKernels } from "../../src/ggml/kernels-build.js";

const directory = mkdtempSync(path.join(tmpdir(), "coppice-kernels-"));
afterAll(() => rmSync(directory, { recursive: true, force: true }));

describe("the kernels' library", () => {
  it("is named by system and source, as that system names libraries", () => {
    const names = TARGETS.map((target) => kernelFileName(target));
    expect(names.map((name) => name.replace(/-[0-9a-f]{12}/, ""))).toEqual([
      "kernels-linux-x64.so",
      "kernels-linux-arm64.so",
      "kernels-darwin-arm64.dylib",
      "kernels-darwin-x64.dylib",
      "kernels-win32-x64.dll",
    ]);
  });

  const { functions } = loadLibrary("cpu");
  const [variant] = availableKernels(functions);

  it.skipIf(variant === undefined)("is said to come from the file that was loaded", () => {
    const { kernels } = loadKernels(functions, variant); // by name: COPPICE_KERNELS may ask for others
    expect(kernels?.file).toBe(builtLibrary());
  });

  it("leaves nothing behind when it cannot be compiled, and says what the compiler said", async () => {
    const compiler = `${process.execPath} --no-such-option`;
    await expect(compileKernels({ compiler, target: process, directory })).rejects.toThrow(/no-such-option/);
    expect(readdirSync(directory)).toEqual([]);
  });
});

describe("the packages of kernels", () => {
  it("are one for each system, of the main package's version", () => {
    expect(Object.keys(kernelDependencies())).toEqual(TARGETS.map((target) => kernelPackage(target)));
    expect(new Set(Object.values(kernelDependencies())).size).toBe(1);
    for (const { arch } of TARGETS) expect(VARIANTS[arch]).toBeDefined();
  });

  it("are named when one is asked for that is not there", () => {
    expect(() => targetsOf(["plan9-x64"])).toThrow(/no kernels for plan9-x64; there are linux-x64, /);
    expect(targetsOf(["win32-x64"]).map(({ zig }) => zig)).toEqual(["x86_64-windows-gnu"]);
  });
});
