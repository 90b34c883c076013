/**
 * What a foundry must live through: many jobs, and every few seconds one of its workers killed (SIGKILL). Tells whether all jobs
 * ended, none twice and none lost, and whether the files that they made are what their checksums say. On PGlite; on PostgreSQL
 * where --database names one. Ends with 1 where something was not as it must be.
 *
 *   npm run build && npx tsx bench/foundry-chaos.ts [--jobs 200] [--workers 1] [--kill-every 10] [--database postgres://...]
 */
import { createHash } from "node:crypto";
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import path from "node:path";
import { setTimeout as wait } from "node:timers/promises";
import { parseArgs } from "node:util";
import { startFoundry } from "../src/foundry/index.js";

const { values } = parseArgs({
  options: {
    jobs: { type: "string", default: "200" },
    workers: { type: "string", default: "1" },
    "kill-every": { type: "string", default: "10" },
    tokens: { type: "string", default: "20000" },
    database: { type: "string" },
    minutes: { type: "string", default: "40" },
  },
});
const count = Number(values.jobs);
const data = mkdtempSync(path.join(tmpdir(), "foundry-chaos-"));
const foundry = await startFoundry({
  data,
  databaseUrl: values.database,
  port: 0,
  workers: Number(values.workers),
  logLevel: "silent",
  device: "cpu",
  threads: 1,
  deadAfterSeconds: 4,
  quota: { max_jobs: null },
});
const { url } = foundry;

async function ask<T>(method: string, at: string, body?: object, headers: Record<string, string> = {}): Promise<T> {
  const response = await fetch(url + at, {
    method,
    headers: { "content-type": "application/json", ...headers },
    ...(body && { body: JSON.stringify(body) }),
  });
  if (!response.ok) throw new Error(`${method} ${at}: ${response.status} ${await response.text()}`);
  return response.json() as Promise<T>;
}

interface Job {
  readonly id: string;
  readonly state: string;
  readonly attempts: number;
  readonly error: string | null;
}

let failed = false;
const check = (good: boolean, what: string) => {
  console.log(`${good ? "    " : "BAD "}${what}`);
  failed ||= !good;
};

const models = await ask<{ data: { id: string }[] }>("GET", "/v1/models");
const model = models.data.at(-1)?.id;
const began = performance.now();
const run = `chaos-${Date.now()}`;
const ids: string[] = [];
for (let i = 0; i < count; i++) {
  const spec = {
    model,
    target: "hidden=96,ffn=352",
    device: "phone-4gb",
    tokens: Number(values.tokens),
    sequence_length: 64,
    calibration_samples: 32,
    seed: i % 5,
  };
  const made = await ask<Job>("POST", "/v1/jobs", spec, { "idempotency-key": `${run}-${i}` });
  const again = await ask<Job>("POST", "/v1/jobs", spec, { "idempotency-key": `${run}-${i}` });
  if (made.id !== again.id) check(false, `the key ${i} made two jobs`);
  ids.push(made.id);
}
console.log(`    ${count} jobs asked for, twice each, in ${((performance.now() - began) / 1000).toFixed(1)} s`);

let kills = 0;
let turn = 0;
const killer = setInterval(() => {
  const pids = foundry.workerPids();
  const pid = pids[turn++ % Math.max(1, pids.length)];
  if (pid === undefined) return;
  process.kill(pid, "SIGKILL");
  kills++;
}, 1000 * Number(values["kill-every"]));

const jobs = async (): Promise<Job[]> => {
  const all: Job[] = [];
  for (const id of ids) all.push(await ask<Job>("GET", `/v1/jobs/${id}`));
  return all;
};
let states: Job[] = [];
const deadline = began + 60_000 * Number(values.minutes);
let shown = 0;
while (performance.now() < deadline) {
  await wait(3000);
  states = await jobs();
  const ended = states.filter(({ state }) => state !== "queued" && state !== "running").length;
  if (ended - shown >= 20 || ended === count) {
    shown = ended;
    console.log(
      `    ${ended} of ${count} ended after ${((performance.now() - began) / 1000).toFixed(0)} s, ${kills} workers killed`,
    );
  }
  if (ended === count) break;
}
clearInterval(killer);

const by = (state: string) => states.filter((job) => job.state === state);
check(
  by("done").length === count,
  `done ${by("done").length}, failed ${by("failed").length}, not ended ${by("queued").length + by("running").length} of ${count}`,
);
for (const job of by("failed")) console.log(`      ${job.id}: ${job.error}`);
console.log(
  `    attempts: ${states.reduce((sum, { attempts }) => sum + attempts, 0)}, at most ${Math.max(...states.map(({ attempts }) => attempts))} of one job`,
);

let [files, wrong, twice] = [0, 0, 0];
const contents = new Map<string, Set<string>>();
for (const [i, id] of ids.entries()) {
  const events = await (await fetch(`${url}/v1/jobs/${id}/events`)).text();
  const ends = [...events.matchAll(/^event: state\ndata: (.*)$/gm)].filter(
    ([, data = ""]) => JSON.parse(data).state === "done",
  );
  if (ends.length !== 1) twice++;
  const artifacts = await ask<{ data: { name: string; bytes: number; sha256: string }[] }>(
    "GET",
    `/v1/jobs/${id}/artifacts`,
  );
  for (const { name, bytes, sha256 } of artifacts.data) {
    const content = Buffer.from(await (await fetch(`${url}/v1/jobs/${id}/artifacts/${name}`)).arrayBuffer());
    files++;
    if (content.length !== bytes || createHash("sha256").update(content).digest("hex") !== sha256) wrong++;
    if (name === "model.safetensors") contents.set(`${i % 5}`, (contents.get(`${i % 5}`) ?? new Set()).add(sha256));
  }
}
check(twice === 0, `jobs that did not end exactly once: ${twice}`);
check(wrong === 0, `${files} files, ${wrong} not what their checksums say`);
const made = await ask<{ data: { job_id: string | null }[] }>("GET", "/v1/models");
const own = made.data.filter(({ job_id: id }) => id !== null && ids.includes(id));
check(
  own.length === count && new Set(own.map(({ job_id: id }) => id)).size === count,
  `${own.length} models, one for each job`,
);
// the same seed, the same numbers, whether a worker died or not
check(
  [...contents.values()].every((set) => set.size === 1),
  `weights of equal jobs: ${[...contents.values()].map((set) => set.size).join(", ")} kinds by seed`,
);
console.log(
  `    ${((performance.now() - began) / 1000).toFixed(0)} s, ${kills} workers killed, ${values.workers} at a time, on ${values.database === undefined ? "PGlite" : "PostgreSQL"}`,
);
await foundry.close();
rmSync(data, { recursive: true, force: true });
process.exit(failed ? 1 : 0);
