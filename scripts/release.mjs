/**
 * Publishes the packages: those of the kernels first, because the main one depends on them.
 *
 *     node scripts/release.mjs --dry-run    # reports what is missing, packs, and publishes nothing
 *     node scripts/release.mjs              # in CI, where npm can sign the packages' provenance
 *
 * Before: set the version in package.json, date its section of CHANGELOG.md, commit. Run it in the repository's root, where zig
 * can be found (`pip install ziglang`).
 */
import { spawnSync } from "node:child_process";
import { existsSync, readdirSync, readFileSync } from "node:fs";
import path from "node:path";
import process from "node:process";

const isDry = process.argv.includes("--dry-run");
const unknown = process.argv.slice(2).filter((argument) => argument !== "--dry-run");
if (unknown.length > 0) {
  console.error(`usage: node scripts/release.mjs [--dry-run], not ${unknown.join(" ")}`);
  process.exit(2);
}

const shell = process.platform === "win32"; // npm is a script there
const output = (command, ...args) => {
  const { status, stdout } = spawnSync(command, args, { encoding: "utf8", shell });
  return status === 0 ? stdout.trim() : undefined;
};
const { name, version, repository } = JSON.parse(readFileSync("package.json", "utf8"));

/** What stands in the way of a release. */
function findProblems() {
  const problems = [];
  const changes = output("git", "status", "--porcelain");
  if (changes === undefined) problems.push("this is not a git repository");
  else if (changes !== "") problems.push(`the working tree has changes:\n${changes}`);

  if (output("git", "tag", "--list", `v${version}`)) problems.push(`${version} is tagged already: raise the version`);
  if (output("npm", "view", `${name}@${version}`, "version")) problems.push(`${name}@${version} is published already`);
  if (repository === undefined)
    problems.push("package.json names no repository, which npm compares with the one that signs the provenance");

  const changelog = existsSync("CHANGELOG.md") ? readFileSync("CHANGELOG.md", "utf8") : "";
  const heading = changelog.split("\n").find((line) => line.startsWith(`## ${version}`));
  if (heading === undefined) problems.push(`CHANGELOG.md has no section "## ${version}"`);
  else if (!/\d{4}-\d{2}-\d{2}/.test(heading)) problems.push(`CHANGELOG.md has no date at "${heading}"`);
  return problems;
}

/** The tarballs of this version that `npm run pack` left, the main package's last. */
function packedFiles() {
  const main = `${name}-${version}.tgz`;
  const files = readdirSync("packages").filter((file) => file.endsWith(`-${version}.tgz`) && file !== main);
  return [...files.sort(), main].map((file) => path.join("packages", file));
}

/** A step of the release. A dry run only prints those that change something outside. */
function step(command, args, { isHarmless = false } = {}) {
  const skips = isDry && !isHarmless;
  console.log(`${skips ? "would run" : "running"}: ${command} ${args.join(" ")}`);
  return skips || spawnSync(command, args, { stdio: "inherit", shell }).status === 0;
}

function release() {
  console.log(`${name} ${version}`);
  const problems = findProblems();
  for (const problem of problems) console.error(`problem: ${problem}`);
  if (problems.length > 0 && !isDry) return 1;

  if (!step("npm", ["run", "test:all"])) return 1;
  if (!step("npm", ["run", "build"], { isHarmless: true }) || !step("npm", ["run", "pack"], { isHarmless: true }))
    return 1;
  for (const file of packedFiles()) {
    // Provenance names the commit and the workflow that a package was built from; npm signs it in CI only.
    const args = ["publish", file, "--access", "public", ...(isDry ? ["--dry-run"] : ["--provenance"])];
    if (step("npm", args, { isHarmless: isDry })) continue;
    console.error(`problem: ${file} could not be published; what was published before it stays`);
    return 1;
  }
  const isTagged = step("git", ["tag", `v${version}`]) && step("git", ["push", "origin", `v${version}`]);
  return problems.length > 0 || !isTagged ? 1 : 0;
}

process.exitCode = release();
