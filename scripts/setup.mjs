// Installs and builds what is missing, so that `npm test` and `npm run demo` work in a fresh clone. Plain JavaScript: nothing
// is installed yet when it runs.
import { spawnSync } from "node:child_process";
import { existsSync, readdirSync, statSync, utimesSync, writeFileSync } from "node:fs";
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

/** What the build reads, and a file as old as the sources of the last complete build, which goes with what was built. */
const SOURCES = ["src", "web", "native", "package.json", "package-lock.json", "tsconfig.json", "tsconfig.build.json"];
const BUILT = "dist/.complete";
const started = new Date();

const modified = (file) => (existsSync(path.join(root, file)) ? statSync(path.join(root, file)).mtimeMs : 0);

/** When the last of the files, or of the folders that hold them, was changed; what is built lies in a folder of its own. */
function newest(files) {
  return Math.max(
    ...files.map((file) => {
      const status = statSync(path.join(root, file));
      if (!status.isDirectory()) return status.mtimeMs;
      const entries = readdirSync(path.join(root, file)).filter((entry) => entry !== "build");
      return Math.max(status.mtimeMs, newest(entries.map((entry) => path.join(file, entry))));
    }),
  );
}

const isBuilt = () => modified(BUILT) >= newest(SOURCES);

// npm writes this file when an installation is complete. Not `npm ci`: it refuses a lock file without the packages of other
// platforms, which npm leaves out where it cannot see them.
if (modified("node_modules/.package-lock.json") < modified("package-lock.json"))
  run("npm", ["install", "--no-audit", "--no-fund"]);
else if (!isBuilt()) run("npm", ["run", "--silent", "build"]);
else run("node", ["scripts/kernels.mjs"]); // which may be those of another processor
if (!isBuilt()) {
  writeFileSync(path.join(root, BUILT), "");
  utimesSync(path.join(root, BUILT), started, started);
}
