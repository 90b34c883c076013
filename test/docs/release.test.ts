import { spawnSync } from "node:child_process";
import { mkdirSync, writeFileSync } from "node:fs";
import path from "node:path";
import { describe, expect, it } from "vitest";
import { temporaryDirectory } from "../temporary.js";

const script = path.resolve(import.meta.dirname, "../../scripts/release.mjs");

/** A repository whose `npm run pack` packs a package of kernels and the main one. Its registry is an address where nobody answers. */
function repository(changelog: string, manifest: object = {}): string {
  const directory = temporaryDirectory();
  const write = (file: string, content: string | object) => {
    const at = path.join(directory, file);
    mkdirSync(path.dirname(at), { recursive: true });
    writeFileSync(at, typeof content === "string" ? content : JSON.stringify(content));
  };
  const version = "0.2.0";
  const scripts = { build: "node --version", pack: "npm pack --pack-destination packages ./kernels ." };
  write("package.json", { name: "release-test-main", version, scripts, ...manifest });
  write("kernels/package.json", { name: "release-test-kernels", version });
  write("packages/.gitignore", "*.tgz\n");
  write("CHANGELOG.md", changelog);
  write(".npmrc", "registry=http://127.0.0.1:9/\nfetch-retries=0\n");
  const run = (command: string, ...args: string[]) =>
    expect(spawnSync(command, args, { cwd: directory, encoding: "utf8" }).status, `${command} ${args}`).toBe(0);
  run("git", "init", "--quiet");
  run("git", "add", ".");
  run("git", "-c", "user.name=Test", "-c", "user.email=test@example.org", "commit", "--quiet", "-m", "Start");
  return directory;
}

function release(cwd: string, ...args: readonly string[]) {
  const { status, stdout, stderr } = spawnSync(process.execPath, [script, ...args], { cwd, encoding: "utf8" });
  return { status, stdout, problems: stderr.split("\n").filter((line) => line.startsWith("problem: ")) };
}

describe("a release", () => {
  it("names all that is missing, and publishes nothing", () => {
    const directory = repository("# Changelog\n");
    writeFileSync(path.join(directory, "left-over"), "");
    const { status, stdout, problems } = release(directory);
    expect(status).toBe(1);
    expect(problems).toEqual([
      "problem: the working tree has changes:",
      "problem: package.json names no repository, which npm compares with the one that signs the provenance",
      'problem: CHANGELOG.md has no section "## 0.2.0"',
    ]);
    expect(stdout).not.toContain("running");
  });

  it("is tried without publishing, the kernels first", () => {
    const directory = repository("# Changelog\n\n## 0.2.0, 2026-12-01\n", { repository: "example/main" });
    const { stdout, problems } = release(directory, "--dry-run");
    expect(problems.filter((one) => !one.includes("could not be published"))).toEqual([]);
    const steps = stdout.split("\n").filter((line) => /^(would run|running): /.test(line));
    expect(steps.slice(0, 4)).toEqual([
      "would run: npm run test:all",
      "running: npm run build",
      "running: npm run pack",
      `running: npm publish ${path.join("packages", "release-test-kernels-0.2.0.tgz")} --access public --dry-run`,
    ]);
  });
});
