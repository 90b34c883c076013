/**
 * Publishes the packages: those of the workspaces first, because the main one depends on them.
 *
 *     node scripts/release.mjs --dry-run    # says what is missing and what it would do; publishes nothing
 *     node scripts/release.mjs              # in CI, where npm can sign the packages' provenance
 *
 * Before: set the version in package.json and in each workspace (`npm version 0.2.0 --workspaces --include-workspace-root
 * --no-git-tag-version`), write its section of CHANGELOG.md, commit. Run it in the repository's root.
 */
import { spawnSync } from "node:child_process";
import { existsSync, readFileSync } from "node:fs";
import path from "node:path";
import process from "node:process";
import { globSync } from "tinyglobby";

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
const readPackage = (directory) => JSON.parse(readFileSync(path.join(directory, "package.json"), "utf8"));

/** Packages in the order of their publication. */
function packagesOf() {
  const { workspaces = [] } = readPackage(".");
  const files = globSync(
    workspaces.map((pattern) => `${pattern}/package.json`),
    { ignore: ["**/node_modules/**"] },
  );
  return [...files.sort().map((file) => path.dirname(file)), "."]
    .map((directory) => ({ directory, ...readPackage(directory) }))
    .filter((one) => one.private !== true);
}

/** What stands in the way of a release. */
function problemsOf(packages, version) {
  const problems = [];
  const changes = output("git", "status", "--porcelain");
  if (changes === undefined) problems.push("this is not a git repository");
  else if (changes !== "") problems.push(`the working tree has changes:\n${changes}`);

  if (output("git", "tag", "--list", `v${version}`)) problems.push(`${version} is tagged already: raise the version`);
  for (const { name, version: own, optionalDependencies = {} } of packages) {
    if (own !== version) problems.push(`${name} has the version ${own}, the main package ${version}`);
    for (const other of packages.filter((one) => one.name in optionalDependencies))
      if (optionalDependencies[other.name] !== version)
        problems.push(`${name} asks for ${other.name} ${optionalDependencies[other.name]}, not ${version}`);
    if (output("npm", "view", `${name}@${version}`, "version"))
      problems.push(`${name}@${version} is published already`);
  }

  const changelog = existsSync("CHANGELOG.md") ? readFileSync("CHANGELOG.md", "utf8") : "";
  const heading = changelog.split("\n").find((line) => line.startsWith(`## ${version}`));
  if (heading === undefined) problems.push(`CHANGELOG.md has no section "## ${version}"`);
  else if (!/\d{4}-\d{2}-\d{2}/.test(heading)) problems.push(`CHANGELOG.md has no date at "${heading}"`);
  return problems;
}

/** A step of the release; in a dry run it is only printed, unless it changes nothing. */
function step(command, args, { cwd = ".", isHarmless = false } = {}) {
  const skips = isDry && !isHarmless;
  console.log(`${skips ? "would run" : "running"}: ${command} ${args.join(" ")}${cwd === "." ? "" : ` in ${cwd}`}`);
  if (skips) return true;
  return spawnSync(command, args, { cwd, stdio: "inherit", shell }).status === 0;
}

function release() {
  const { version } = readPackage(".");
  const packages = packagesOf();
  console.log(`version ${version}: ${packages.map(({ name }) => name).join(", ")}`);
  const problems = problemsOf(packages, version);
  for (const problem of problems) console.error(`problem: ${problem}`);
  if (problems.length > 0 && !isDry) return 1;

  if (!step("npm", ["test"])) return 1;
  for (const { directory: cwd, name } of packages) {
    // Provenance says which commit and workflow a package was built from; npm signs it in CI only.
    const args = ["publish", "--access", "public", ...(isDry ? ["--dry-run"] : ["--provenance"])];
    const published = step("npm", args, { cwd, isHarmless: isDry });
    if (published) continue;
    console.error(`problem: ${name} could not be published; what was published before it stays`);
    return 1;
  }
  const isTagged = step("git", ["tag", `v${version}`]) && step("git", ["push", "origin", `v${version}`]);
  return problems.length > 0 || !isTagged ? 1 : 0;
}

process.exitCode = release();
