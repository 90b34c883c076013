import { spawnSync } from "node:child_process";
import { readdirSync, readFileSync, symlinkSync, writeFileSync } from "node:fs";
import path from "node:path";
import { describe, expect, it } from "vitest";
import * as api from "../../src/index.js";
import { temporaryDirectory } from "../temporary.js";

const root = path.resolve(import.meta.dirname, "../..");
const read = (file: string) => readFileSync(path.join(root, file), "utf8");
const filesBelow = (folder: string, ending: string) =>
  readdirSync(path.join(root, folder), { recursive: true, encoding: "utf8" })
    .filter((name) => name.endsWith(ending) && !/(^|[/\\])(api|node_modules)[/\\]/.test(name))
    .map((name) => path.join(folder, name));

interface Example {
  /** `FILE:LINE` of its first line. */
  readonly from: string;
  readonly code: string;
}

/** The ```ts blocks of a text. */
function blocksOf(file: string, text: string): Example[] {
  return [...text.matchAll(/^```ts\n([\s\S]*?)^```$/gm)].map((match) => ({
    from: `${file}:${text.slice(0, match.index).split("\n").length + 1}`,
    code: match[1] ?? "",
  }));
}

/** The same in doc comments: everything else becomes empty lines, so that line numbers stay. */
const docComments = (source: string) =>
  source
    .split("\n")
    .map((line) => /^ *\* ?(.*)$/.exec(line)?.[1] ?? "")
    .join("\n");

const sources = filesBelow("src", ".ts").map((file) => ({ file, text: read(file) }));
const examples: Example[] = [
  ...["README.md", "CONTRIBUTING.md", ...filesBelow("docs", ".md")].flatMap((file) => blocksOf(file, read(file))),
  ...sources
    .filter(({ text }) => text.includes("@example"))
    .flatMap(({ file, text }) => blocksOf(file, docComments(text))),
]
  // Blocks with relative imports are files of src/, which are compiled anyway.
  .filter(({ code }) => !/from "\.\.?\//.test(code));

/** Says where in the documentation the compiler found something, instead of in a copy. */
const compile = (directory: string, examples: readonly Example[]): string => {
  const compilerOptions = {
    paths: {
      coppice: [path.join(root, "src/index.ts")],
      "coppice/*": [path.join(root, "src/*/index.ts")],
    },
  };
  const config = { extends: path.join(root, "tsconfig.json"), compilerOptions, include: ["*.ts"] };
  symlinkSync(path.join(root, "node_modules"), path.join(directory, "node_modules"), "junction");
  writeFileSync(path.join(directory, "package.json"), JSON.stringify({ type: "module" }));
  writeFileSync(path.join(directory, "tsconfig.json"), JSON.stringify(config));
  examples.forEach(({ code }, i) => {
    writeFileSync(path.join(directory, `${i}.ts`), `${code}\nexport {};\n`);
  });
  const tsc = path.join(root, "node_modules/typescript/bin/tsc");
  const { status, stdout, stderr } = spawnSync(process.execPath, [tsc, "-p", directory, "--pretty", "false"], {
    encoding: "utf8",
    cwd: directory,
  });
  const said = `${stdout}${stderr}`.replaceAll(/^(\d+)\.ts\((\d+),/gm, (_, i: string, line: string) => {
    const [, file = "", first = "1"] = /^(.*):(\d+)$/.exec(examples[Number(i)]?.from ?? "") ?? [];
    return `${file}:${Number(first) + Number(line) - 1} (column `;
  });
  return status === 0 ? said : `${said}tsc ended with ${status}`;
};

describe("the documentation's examples", () => {
  const directory = temporaryDirectory();

  it("compile, and the compiler would say which does not", () => {
    const wrong = {
      from: "NOWHERE.md:7",
      code: 'import { compress } from "coppice";\ncompress({ modle: "./model" });',
    };
    const [first, ...others] = compile(directory, [...examples, wrong])
      .trim()
      .split("\n");
    expect(others).toEqual([expect.stringMatching(/^tsc ended with [12]$/)]);
    expect(first).toMatch(/^NOWHERE\.md:8 .*modle/);
  });

  it("are there for each function of the public API", () => {
    const functions = Object.entries(api).flatMap(([name, value]) =>
      typeof value === "function" && !/^class\b/.test(value.toString()) ? [name] : [],
    );
    const without = functions.filter((name) => {
      const declared = new RegExp(
        String.raw`/\*\*((?:(?!\*/)[\s\S])*)\*/\s*export (?:async )?(?:function|const) ${name}\b`,
      );
      return !sources.some(({ text }) => declared.exec(text)?.[1]?.includes("@example"));
    });
    expect(functions).toContain("compress");
    expect(without).toEqual([]);
  });
});
