// Installs and builds what is missing, so that `npm test` and `npm run demo` work in a fresh clone. Plain JavaScript: nothing
// is installed yet when it runs.
import { spawnSync } from "node:child_process";
import { existsSync, statSync } from "node:fs";
import path from "node:path";
import process from "node:process";

const root = path.resolve(import.meta.dirname, "..");
const [major, minor] = process.versions.node.split(".").map(Number);
if (major < 20 || (major === 20 && minor < 20)) {
  console.error(`Node 20.20 or newer is needed, this is ${process.versions.node}`);
  process.exit(2);
}

function run(command, args) {
  console.error(`> ${command} ${args.join(" ")}`);
  const shell = process.platform === "win32"; // npm is a script there
  // results go to standard output, what it takes to get there to standard error
  const { status } = spawnSync(command, args, { cwd: root, stdio: ["ignore", 2, 2], shell });
  if (status !== 0) process.exit(status ?? 1);
}

const modified = (file) => (existsSync(path.join(root, file)) ? statSync(path.join(root, file)).mtimeMs : 0);

// npm writes this file when an installation is complete. Not `npm ci`: it refuses a lock file without the packages of other
// platforms, which npm leaves out where it cannot see them.
if (modified("node_modules/.package-lock.json") < modified("package-lock.json"))
  run("npm", ["install", "--no-audit", "--no-fund"]);
else run("npm", ["run", "--silent", "build"]);
