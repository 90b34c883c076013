import { execFileSync, spawn } from "node:child_process";
import { chownSync, existsSync, mkdtempSync, readdirSync, readFileSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import path from "node:path";
import { setTimeout as wait } from "node:timers/promises";

export interface TestDatabase {
  /** Undefined for PGlite. */
  readonly url: string | undefined;
  stop(): Promise<void>;
}

/** The directory of PostgreSQL's programs, which Debian has by version. */
function postgresBinaries(): string | undefined {
  const debian = "/usr/lib/postgresql";
  const candidates = existsSync(debian) ? readdirSync(debian).map((version) => path.join(debian, version, "bin")) : [];
  return candidates.find((directory) => existsSync(path.join(directory, "postgres")));
}

/** Starts PostgreSQL on a socket, as the user postgres: it does not run as root. */
async function startPostgres(binaries: string): Promise<TestDatabase> {
  const directory = mkdtempSync(path.join(tmpdir(), "coppice-postgres-"));
  const isRoot = process.getuid?.() === 0;
  const idOf = (flag: string) => Number(execFileSync("id", [flag, "postgres"], { encoding: "utf8" }));
  const user = isRoot ? { uid: idOf("-u"), gid: idOf("-g") } : {};
  if (user.uid !== undefined && user.gid !== undefined) chownSync(directory, user.uid, user.gid);
  const files = path.join(directory, "data");
  const run = { ...user, cwd: directory, stdio: "ignore" as const };
  execFileSync(path.join(binaries, "initdb"), ["-D", files, "-U", "postgres", "-A", "trust", "-N"], run);
  const server = spawn(path.join(binaries, "postgres"), ["-D", files, "-k", directory, "-h", "", "-F"], run);
  // the eighth line of its lock file says whether it takes connections (PostgreSQL's pidfile.h)
  const status = () => readFileSync(path.join(files, "postmaster.pid"), "utf8").split("\n")[7]?.trim();
  while (!existsSync(path.join(files, "postmaster.pid")) || status() !== "ready") {
    if (server.exitCode !== null) throw new Error(`PostgreSQL ended with ${server.exitCode}`);
    await wait(50);
  }
  return {
    url: `postgres://postgres@/postgres?host=${encodeURIComponent(directory)}`,
    stop: async () => {
      const ended = new Promise((resolve) => server.once("exit", resolve));
      server.kill("SIGINT");
      await ended;
      rmSync(directory, { recursive: true, force: true });
    },
  };
}

const binaries = postgresBinaries();

/** Both engines; PostgreSQL where it is installed (`apt-get install postgresql`). */
export const DATABASES: readonly { name: string; missing: boolean; start: () => Promise<TestDatabase> }[] = [
  { name: "PGlite", missing: false, start: async () => ({ url: undefined, stop: async () => {} }) },
  { name: "PostgreSQL", missing: binaries === undefined, start: () => startPostgres(binaries ?? "") },
];
