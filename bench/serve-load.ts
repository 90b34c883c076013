/**
 * How a service bears 1, 8 and 32 clients whose prompts begin alike and go on differently: tokens per second, and milliseconds to
 * the first text. With --peer, the same in turns against llama.cpp's own server on the same file, threads and slots.
 *
 *   npm run build && npx tsx bench/serve-load.ts [--model model.gguf | --random] [--peer /path/to/llama-server] [--rounds 3] [--threads 1] [--requests 64]
 *
 * Each server is started anew for each round, and bears the same number of other requests before those that count.
 * --random measures a quantized model of 100 M parameters with random weights.
 */
import { type ChildProcess, spawn } from "node:child_process";
import { once } from "node:events";
import { existsSync } from "node:fs";
import { Agent, request } from "node:http";
import { createServer } from "node:net";
import path from "node:path";
import { setTimeout as wait } from "node:timers/promises";
import { parseArgs } from "node:util";
import Table from "cli-table3";
import { openGguf } from "../src/checkpoint/gguf.js";
import { quantize, runnableGguf } from "../src/jobs/index.js";
import { modelFacts } from "../src/serve/profiles.js";
import { Random } from "../src/system/random.js";
import { median } from "../src/system/statistics.js";
import { randomLlama } from "./random-checkpoint.js";

const { values } = parseArgs({
  options: {
    model: { type: "string", default: "examples/tiny-teacher" },
    random: { type: "boolean" },
    peer: { type: "string" },
    rounds: { type: "string", default: "3" },
    requests: { type: "string", default: "64" },
    threads: { type: "string", default: "1" },
    slots: { type: "string", default: "8" },
    clients: { type: "string", default: "1,8,32" },
    context: { type: "string" },
    shared: { type: "string", default: "0.5" },
    json: { type: "boolean" },
  },
});
const root = path.resolve(import.meta.dirname, "..");
const file = values.random ? await randomFile() : await runnableGguf(values.model, {});
const { contextLength, vocab } = modelFacts(file);
const context = Number(values.context ?? Math.min(2048, contextLength));
const [threads, slots] = [Number(values.threads), Number(values.slots)];
/** Tokens that all prompts of a round begin with, most of those that follow, and tokens to write. */
const [prefix, own, written] = [Math.round(context * Number(values.shared)), context >> 3, context >> 4];

/** A quantized model of 100 M parameters with random weights: it takes as long as one that was trained. */
async function randomFile(): Promise<string> {
  const directory = path.join(root, "bench/results/random-100m");
  const out = `${directory}.Q4_K_M.gguf`;
  const sizes = { vocab: 32000, hidden: 768, ffn: 2048, layers: 11, heads: 12, kvHeads: 4, headDim: 64 };
  randomLlama(directory, sizes);
  if (!existsSync(out)) await quantize({ model: directory, types: ["q4_k_m"], out });
  return out;
}

interface Server {
  readonly name: string;
  readonly command: string;
  readonly flags: readonly string[];
  readonly port: number;
}

async function freePort(): Promise<number> {
  const server = createServer().listen(0, "127.0.0.1");
  await once(server, "listening");
  const { port } = server.address() as { port: number };
  server.close();
  return port;
}

async function ours(): Promise<Server> {
  const port = await freePort();
  const flags = [
    "serve",
    file,
    "--port",
    `${port}`,
    "--device",
    "cpu",
    "--threads",
    `${threads}`,
    "--slots",
    `${slots}`,
  ];
  const more = ["--context-size", `${context}`, "--log-level", "silent"];
  return {
    name: "coppice serve",
    command: process.execPath,
    flags: [path.join(root, "bin/coppice.cjs"), ...flags, ...more],
    port,
  };
}

async function theirs(command: string): Promise<Server> {
  const port = await freePort();
  const flags = ["-m", file, "--port", `${port}`, "-t", `${threads}`, "-tb", `${threads}`, "-np", `${slots}`];
  return { name: "llama-server", command, flags: [...flags, "-c", `${context * slots}`, "--log-disable"], port };
}

async function start({ command, flags, port }: Server): Promise<ChildProcess> {
  agent.destroy();
  agent = new Agent({ maxSockets: 64 }); // a connection for each request: one of the servers closes them
  const child = spawn(command, flags, { stdio: "ignore" });
  for (let i = 0; i < 600; i++) {
    const well = await fetch(`http://127.0.0.1:${port}/v1/models`).then(
      async (response) => response.ok && (await post(port, { prompt: [1, 2], max_tokens: 1 })).tokens > 0,
      () => false,
    );
    if (well) return child;
    if (child.exitCode !== null) break;
    await wait(100);
  }
  throw new Error(`${command} does not answer`);
}

interface Measured {
  readonly first: number;
  readonly total: number;
  readonly tokens: number;
}

/** Connections of the server that runs. */
let agent = new Agent();

/** Asks for a stream and reads it to its end. */
function post(port: number, body: object): Promise<Measured> {
  return new Promise((resolve, reject) => {
    const began = performance.now();
    const options = { host: "127.0.0.1", port, path: "/v1/completions", method: "POST", agent };
    const sent = request({ ...options, headers: { "content-type": "application/json" } }, (response) => {
      let [first, text] = [0, ""];
      response.setEncoding("utf8");
      response.on("data", (part: string) => {
        if (first === 0) first = performance.now() - began;
        text += part;
      });
      response.on("end", () => {
        const tokens = Number(/"completion_tokens":\s*(\d+)/.exec(text)?.[1] ?? 0);
        if (response.statusCode !== 200 || tokens === 0)
          reject(new Error(`${response.statusCode} ${text.slice(0, 300)}`));
        resolve({ first, total: performance.now() - began, tokens });
      });
      response.on("error", reject);
    });
    sent.on("error", (error) =>
      reject(new Error(`port ${port}: ${error.message} after ${performance.now() - began} ms`)),
    );
    sent.end(
      JSON.stringify({
        ...body,
        stream: true,
        stream_options: { include_usage: true },
        temperature: 0,
        ignore_eos: true,
      }),
    );
  });
}

interface Result {
  readonly server: string;
  readonly clients: number;
  readonly tokensPerSecond: number;
  /** Of all tokens, prompts' too. */
  readonly requestsPerSecond: number;
  readonly p50: number;
  readonly p95: number;
  readonly p99: number;
}

const quantile = (sorted: readonly number[], share: number): number =>
  sorted[Math.min(sorted.length - 1, Math.ceil(share * sorted.length) - 1)] ?? Number.NaN;

/** Each client asks one question after the other; prompts are the same for both servers and new in each round. */
async function load(server: Server, clients: number, round: number): Promise<Result> {
  const each = Math.max(2, Math.ceil(Number(values.requests) / clients));
  const random = new Random(1000 * round + clients);
  const tokens = (count: number) => Array.from({ length: count }, () => 3 + Math.floor(random.uniform() * (vocab - 3)));
  const common = tokens(prefix);
  const prompts = Array.from({ length: clients * each }, () => [
    ...common,
    ...tokens(Math.ceil(own / 4 + random.uniform() * ((3 * own) / 4))),
  ]);
  const began = performance.now();
  const measured = await Promise.all(
    Array.from({ length: clients }, async (_, client) => {
      const all: Measured[] = [];
      for (let i = 0; i < each; i++)
        all.push(await post(server.port, { prompt: prompts[client * each + i], max_tokens: written }));
      return all;
    }),
  );
  const seconds = (performance.now() - began) / 1000;
  const all = measured.flat();
  const first = all.map((one) => one.first).sort((a, b) => a - b);
  return {
    server: server.name,
    clients,
    tokensPerSecond: all.reduce((sum, one) => sum + one.tokens, 0) / seconds,
    requestsPerSecond: all.length / seconds,
    p50: quantile(first, 0.5),
    p95: quantile(first, 0.95),
    p99: quantile(first, 0.99),
  };
}

const servers = [await ours(), ...(values.peer === undefined ? [] : [await theirs(values.peer)])];
const results: Result[] = [];
for (const clients of values.clients.split(",").map(Number))
  for (let round = 0; round < Number(values.rounds); round++)
    for (const server of round % 2 === 0 ? servers : [...servers].reverse()) {
      const child = await start(server); // one at a time: they would take each other's processor
      try {
        await load(server, clients, 1000 + round); // warms up: compilers, caches, connections
        results.push(await load(server, clients, round));
      } finally {
        child.kill("SIGTERM");
        await once(child, "exit");
      }
    }

const rows = [...new Set(results.map(({ clients }) => clients))].flatMap((clients) =>
  servers.map(({ name }) => {
    const own = results.filter((result) => result.server === name && result.clients === clients);
    const of = (pick: (result: Result) => number) => median(own.map(pick));
    return {
      clients,
      server: name,
      tokensPerSecond: of((one) => one.tokensPerSecond),
      requestsPerSecond: of((one) => one.requestsPerSecond),
      p50: of((one) => one.p50),
      p95: of((one) => one.p95),
      p99: of((one) => one.p99),
    };
  }),
);
if (values.json) console.log(JSON.stringify({ prefix, own, written, context, slots, threads, rows, results }));
else {
  const table = new Table({
    head: ["clients", "server", "tokens/s", "requests/s", "TTFT p50", "p95", "p99 (ms)"],
    style: { head: [] },
  });
  for (const row of rows)
    table.push([
      `${row.clients}`,
      row.server,
      row.tokensPerSecond.toFixed(1),
      row.requestsPerSecond.toFixed(2),
      ...[row.p50, row.p95, row.p99].map((value) => value.toFixed(1)),
    ]);
  const { files } = openGguf(file);
  console.log(
    `${path.basename(files[0] ?? file)}: prompts of ${prefix} shared and ${Math.ceil(own / 4)} to ${own} own tokens, ${written} written; ${slots} slots, ${threads} threads, median of ${values.rounds} rounds`,
  );
  console.log(table.toString());
}
