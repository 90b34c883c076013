/**
 * What a foundry must live through: requests made at random from its own OpenAPI document, another tenant who asks for everything,
 * bodies that are none or too large, uploads that break off, watchers that leave, and its end while it is busy. Tells whether it
 * still answers, whether anything was answered 500, what another tenant saw, and its resident memory on the way. Ends with 1 where
 * something was not as it must be.
 *
 *   npm run build && npx tsx bench/foundry-faults.ts [--random 10000] [--uploads 200] [--watchers 200] [--database postgres://...]
 */
import { randomUUID } from "node:crypto";
import { mkdtempSync, readdirSync, rmSync } from "node:fs";
import { connect } from "node:net";
import { tmpdir } from "node:os";
import path from "node:path";
import { setTimeout as wait } from "node:timers/promises";
import { parseArgs } from "node:util";
import fc from "fast-check";
import { withTenants } from "../src/foundry/index.js";
import { type GeneratedRequest, type Json, type Known, requestsOf } from "../test/openapi-requests.js";
import { Answers, checks, inParallel, Service } from "./faults.js";

const { values } = parseArgs({
  options: {
    random: { type: "string", default: "10000" },
    uploads: { type: "string", default: "200" },
    watchers: { type: "string", default: "200" },
    rounds: { type: "string", default: "4" },
    seed: { type: "string", default: "0" },
    database: { type: "string" },
  },
});
const rounds = Number(values.rounds);
const MAX_UPLOAD = 1 << 20;
/** Requests that are made of the same things. */
const AT_ONCE = 200;
/** Events come until a job ends: so long is looked at them. */
const WATCHED_MILLISECONDS = 200;

const data = mkdtempSync(path.join(tmpdir(), "foundry-faults-"));
const tenants = await withTenants({ data, databaseUrl: values.database }, async (all) => ({
  anna: (await all.addKey("anna", `${Date.now()}`, "user")).key,
  bert: (await all.addKey("bert", `${Date.now()}`, "user")).key,
  boss: (await all.addKey("ops", `${Date.now()}`, "admin")).key,
}));
const service = await Service.start([
  "foundry",
  "--data",
  data,
  "--port",
  "0",
  "--device",
  "cpu",
  "--threads",
  "1",
  "--log-level",
  "error",
  "--json",
  "--max-upload",
  `${MAX_UPLOAD}`,
  ...(values.database === undefined ? [] : ["--database", values.database]),
]);
const { check } = checks;

interface Answer {
  readonly status: number;
  readonly text: string;
}

async function ask(
  tenant: keyof typeof tenants,
  method: string,
  at: string,
  body?: string | Uint8Array<ArrayBuffer>,
  contentType = "application/json",
): Promise<Answer> {
  const signal = at.includes("/events") ? AbortSignal.timeout(WATCHED_MILLISECONDS) : null;
  const response = await fetch(service.url + at, {
    method,
    signal,
    headers: { authorization: `Bearer ${tenants[tenant]}`, "content-type": contentType },
    ...(body !== undefined && { body }),
  });
  const { status } = response;
  return { status, text: await response.text().catch(() => "watched") };
}

const made = async (at: string, body: string, contentType?: string): Promise<string> =>
  (JSON.parse((await ask("anna", "POST", at, body, contentType)).text) as { id: string }).id;
const isWell = async (): Promise<boolean> => (await ask("anna", "GET", "/v1/jobs")).status === 200;
const send = ({ method, path: at, contentType, body }: GeneratedRequest, tenant: keyof typeof tenants) =>
  ask(tenant, method, at, body, contentType).catch((error: Error) => {
    if (error.name === "TimeoutError") return { status: 200, text: "watched" }; // nothing happened while it was watched
    throw error;
  });

const document = (await (await fetch(`${service.url}/openapi.json`)).json()) as Json;
const models = JSON.parse((await ask("anna", "GET", "/v1/models")).text) as { data: { id: string }[] };
const model = models.data.at(-1)?.id;
const quick = { model, tokens: 5000, sequence_length: 32, calibration_samples: 8, target: "hidden=96,ffn=320" };
/** Something of each kind that is Anna's. */
const annas = async () => ({
  job: await made("/v1/jobs", JSON.stringify(quick)),
  model: await made("/v1/models", JSON.stringify({ name: "Anna's" })),
  dataset: await made("/v1/datasets?name=a.txt", "Tom had a kite. ".repeat(50), "text/plain"),
});

async function atRandom(): Promise<void> {
  const answers = new Answers(({ operation }) => operation);
  const all = Number(values.random);
  let shown = 0;
  for (let seed = Number(values.seed); answers.made < all; seed++) {
    const own = await annas(); // anew each time: some of these will be deleted
    const known: Known = {
      model: fc.constant(model),
      tokens: fc.constant(1000),
      hub_id: fc.constant("a/b"),
      max_tokens: fc.nat(8),
      id: fc.constantFrom(model, own.job, own.model, own.dataset, randomUUID()),
      tenant: fc.constant("carl"),
      name: fc.constantFrom("a.txt", "README.md", "config.json"),
      tasks: fc.constantFrom(["piqa"], ["own.js"]),
    };
    const requests = requestsOf(document, known).filter(({ path: at }) => at.length < 4000);
    // each asks as one who may do all, or as the one whose things these are
    await answers.make(requests, Math.min(AT_ONCE, all - answers.made), seed, (request) =>
      send(request, answers.made % 2 === 0 ? "boss" : "anna"),
    );
    await ask("anna", "POST", `/v1/jobs/${own.job}/cancel`);
    if (answers.made < ((shown + 1) * all) / rounds) continue;
    shown++;
    check(await isWell(), `${answers.made} requests from the document: ${service.memory} MiB`);
  }
  answers.report();
}

/** Every operation on something of Anna's, asked for by Bert as the document has it: to him it does not exist. */
async function anotherTenant(): Promise<void> {
  const own = await annas();
  const seen = new Map<string, string>();
  let [asked, refused] = [0, 0];
  for (const [kind, id] of Object.entries(own)) {
    const of = requestsOf(document, { id: fc.constant(id), name: fc.constantFrom("README.md", "config.json") }, 0);
    const requests = fc.sample(
      of.filter(({ path: at }) => at.startsWith(`/v1/${kind}s/${id}`)),
      { numRuns: 100, seed: Number(values.seed) },
    );
    for (const request of requests) {
      const { status } = await send(request, "bert");
      asked++;
      if (status === 404) continue;
      // what is no request is refused before anything is looked for: for what is nobody's just as well
      const nobodys = await send({ ...request, path: request.path.replace(id, randomUUID()) }, "bert");
      if (status === nobodys.status) refused++;
      else seen.set(request.operation, `${status}, ${nobodys.status}`);
    }
  }
  for (const [kind, id] of Object.entries(own))
    check((await ask("anna", "GET", `/v1/${kind}s/${id}`)).status === 200, `Anna still has her ${kind}`);
  check(
    seen.size === 0 && refused < asked / 20,
    `${asked} requests of another tenant: 404, but ${refused} that are refused whatever they ask for, and ${JSON.stringify([...seen])}`,
  );
}

async function malformed(): Promise<void> {
  const encoder = new TextEncoder();
  const deep = `${"[".repeat(100_000)}${"]".repeat(100_000)}`;
  const invalid = new Uint8Array([...encoder.encode('{"name":"'), 0xc3, 0x28, ...encoder.encode('"}')]);
  const bodies: readonly [string, string | Uint8Array<ArrayBuffer>, number][] = [
    ["nothing", "", 400],
    ["no JSON", "{", 400],
    ["invalid UTF-8", invalid, 400],
    ["100000 lists in each other", deep, 400],
    ["a body too large", `{"name":"${"x".repeat(32 << 20)}"}`, 413],
    ["a key __proto__", '{"__proto__":{"role":"admin"},"name":"x"}', 400],
  ];
  for (const [name, body, status] of bodies) {
    const got = await ask("anna", "POST", "/v1/models", body).catch(() => ({ status: 413 })); // closed while it was sent
    check(got.status === status, `${name}: ${got.status}`);
  }
  const over = await ask("anna", "POST", "/v1/datasets?name=a.txt", "x ".repeat(MAX_UPLOAD), "text/plain").catch(
    () => ({
      status: 413,
    }),
  );
  check(over.status === 413, `an upload too large: ${over.status}`);
  const { model: uploading } = await annas();
  for (const name of ["../../etc/passwd", "..%2f..%2fsecrets", "a/../../b", "%00", "model.bin", "x.pt"]) {
    const { status } = await ask("anna", "PUT", `/v1/models/${uploading}/files/${encodeURIComponent(name)}`, "x");
    check(status >= 400 && status < 500, `a file named ${name}: ${status}`);
  }
  check(await isWell(), `well: ${service.memory} MiB`);
}

/** Files of datasets: jobs that run make others. */
const datasetFiles = (): number =>
  readdirSync(path.join(data, "files", "tenants"), { recursive: true, withFileTypes: true }).filter(
    (entry) => entry.isFile() && entry.parentPath.endsWith("datasets"),
  ).length;

/** Uploads that break off half-way leave nothing, neither in the tenant's account nor on the disk. */
async function brokenUploads(): Promise<void> {
  const files = datasetFiles();
  const count = Number(values.uploads);
  await inParallel(count, 16, async (i) => {
    const socket = connect(service.port, "127.0.0.1");
    socket.on("error", () => {});
    const head = [
      `POST /v1/datasets?name=broken-${i}.txt HTTP/1.1`,
      "host: x",
      `authorization: Bearer ${tenants.anna}`,
      "content-type: text/plain",
      "content-length: 500000",
    ];
    socket.write(`${head.join("\r\n")}\r\n\r\n${"Tom ran. ".repeat(i % 100)}`);
    await wait(20 + (i % 40));
    socket.destroy();
  });
  let left = 0;
  for (let i = 0; i < 20; i++) {
    await wait(500);
    left = datasetFiles() - files;
    if (left === 0) break;
  }
  const listed = (await ask("anna", "GET", "/v1/datasets?limit=200")).text.includes("broken-");
  check(left === 0 && !listed, `${count} uploads broken off: ${left} files left, ${service.memory} MiB`);
}

/** Those who watch a job and leave. */
async function watchers(): Promise<void> {
  const count = Number(values.watchers);
  const watched = await made("/v1/jobs", JSON.stringify({ ...quick, tokens: 1e9 }));
  await inParallel(count, 50, async () => {
    await ask("anna", "GET", `/v1/jobs/${watched}/events`).catch(() => {});
  });
  await ask("anna", "POST", `/v1/jobs/${watched}/cancel`);
  check(await isWell(), `${count} watchers left: ${service.memory} MiB`);
}

/** Its end while clients ask and watch and jobs run. */
async function endUnderLoad(): Promise<void> {
  const seen = { answered: 0, told: 0, refused: 0, broken: 0 };
  let ending = false;
  const clients = Array.from({ length: 16 }, async (_, i) => {
    for (;;) {
      try {
        const { status } = await (i % 4 === 0
          ? ask("anna", "POST", "/v1/jobs", JSON.stringify(quick))
          : ask("anna", "GET", "/v1/jobs?limit=20"));
        if (status === 503) seen.told++;
        else if (status >= 500) seen.broken++;
        else seen.answered++;
        if (status === 503) return;
      } catch {
        if (!ending) throw new Error("refused before its end");
        seen.refused++;
        return;
      }
    }
  });
  await wait(1500);
  ending = true;
  const began = performance.now();
  service.stop();
  const code = await service.ended;
  const seconds = (performance.now() - began) / 1000;
  await Promise.all(clients);
  check(
    code === 0 && seen.broken === 0 && seconds < 15,
    `SIGTERM while 16 ask: ended with ${code} after ${seconds.toFixed(1)} s; ${JSON.stringify(seen)}`,
  );
}

console.log(`    at the start: ${service.memory} MiB`);
await anotherTenant();
await malformed();
await brokenUploads();
await watchers();
await atRandom();
await brokenUploads();
await watchers();
await endUnderLoad();
rmSync(data, { recursive: true, force: true });
process.exitCode = checks.failed ? 1 : 0;
