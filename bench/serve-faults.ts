/**
 * What a service must live through: clients that leave in the middle of a stream, bodies that are none, slow senders. Tells
 * whether it still answers, whether every request was answered, and its resident memory before and after.
 *
 *   npm run build && npx tsx bench/serve-faults.ts [--model examples/tiny-teacher] [--disconnects 1000] [--random 10000]
 */
import { spawn } from "node:child_process";
import { readFileSync } from "node:fs";
import { connect } from "node:net";
import path from "node:path";
import { createInterface } from "node:readline";
import { setTimeout as wait } from "node:timers/promises";
import { parseArgs } from "node:util";
import fc from "fast-check";

const { values } = parseArgs({
  options: {
    model: { type: "string", default: "examples/tiny-teacher" },
    disconnects: { type: "string", default: "1000" },
    random: { type: "string", default: "10000" },
  },
});
const root = path.resolve(import.meta.dirname, "..");
const flags = ["--port", "0", "--device", "cpu", "--threads", "1", "--log-level", "silent", "--json"];
const child = spawn(process.execPath, [path.join(root, "bin/coppice.cjs"), "serve", values.model, ...flags], {
  stdio: ["ignore", "pipe", "inherit"],
});
const line = await new Promise<string>((resolve) => createInterface({ input: child.stdout }).once("line", resolve));
const { url } = JSON.parse(line) as { url: string };
const { port } = new URL(url);

/** Resident memory of the service, in MiB (Linux). */
const memory = (): number => {
  const [, kilobytes] = /VmRSS:\s+(\d+)/.exec(readFileSync(`/proc/${child.pid}/status`, "utf8")) ?? [];
  return Math.round(Number(kilobytes) / 1024);
};
const post = (endpoint: string, body: string, signal?: AbortSignal) =>
  fetch(url + endpoint, { method: "POST", body, ...(signal && { signal }) });
const isWell = async (): Promise<boolean> =>
  (await post("/v1/completions", JSON.stringify({ prompt: "Tom", max_tokens: 4 }))).status === 200;

/** So many jobs, some at a time. */
async function inParallel(count: number, width: number, job: (i: number) => Promise<void>): Promise<void> {
  let next = 0;
  const worker = async () => {
    while (next < count) await job(next++);
  };
  await Promise.all(Array.from({ length: width }, worker));
}

async function disconnect(i: number): Promise<void> {
  const abort = new AbortController();
  const body = { prompt: `Tom saw ${i} balls`, max_tokens: 300, stream: true };
  try {
    const response = await post("/v1/completions", JSON.stringify(body), abort.signal);
    const reader = response.body?.getReader();
    for (let part = 0; part < i % 4; part++) await reader?.read();
  } finally {
    abort.abort();
  }
}

const text = fc.oneof(fc.string({ maxLength: 40 }), fc.constant("Tom"), fc.constant(""));
const number = fc.oneof(fc.integer(), fc.double(), fc.integer({ min: 0, max: 4 }));
const anything = fc.oneof(text, number, fc.boolean(), fc.constant(null), fc.array(text, { maxLength: 3 }), fc.object());
const field = (good: fc.Arbitrary<unknown>) =>
  fc.oneof({ weight: 4, arbitrary: good }, { weight: 1, arbitrary: anything });
const sampling = {
  temperature: field(fc.double({ min: 0, max: 2, noNaN: true })),
  top_p: field(fc.double({ min: 0.01, max: 1, noNaN: true })),
  top_k: field(fc.nat(50)),
  min_p: field(fc.double({ min: 0, max: 1, noNaN: true })),
  seed: field(fc.integer()),
  n: field(fc.integer({ min: 1, max: 3 })),
  stop: field(fc.oneof(text, fc.array(text, { maxLength: 4 }))),
  stream: field(fc.boolean()),
  presence_penalty: field(fc.double({ min: -2, max: 2, noNaN: true })),
  logit_bias: field(fc.dictionary(fc.nat(600).map(String), fc.integer({ min: -100, max: 100 }), { maxKeys: 3 })),
};
const completion = fc.record(
  {
    ...{ prompt: field(fc.oneof(text, fc.array(fc.nat(600), { minLength: 1, maxLength: 9 }))), ...sampling },
    ...{ max_tokens: field(fc.nat(6)), logprobs: field(fc.nat(5)), echo: field(fc.boolean()) },
  },
  { requiredKeys: ["prompt", "max_tokens"] },
);
const chat = fc.record(
  {
    messages: field(
      fc.array(fc.record({ role: fc.constantFrom("user", "system", "assistant", "tool"), content: text }), {
        maxLength: 4,
      }),
    ),
    ...sampling,
    ...{
      max_tokens: field(fc.integer({ min: 1, max: 6 })),
      logprobs: field(fc.boolean()),
      top_logprobs: field(fc.nat(5)),
    },
    response_format: field(fc.constantFrom({ type: "text" }, { type: "json_object" })),
  },
  { requiredKeys: ["messages", "max_tokens"] },
);
const raw = fc.string({ maxLength: 60 });

const statuses = new Map<number, number>();
const count = (status: number) => statuses.set(status, (statuses.get(status) ?? 0) + 1);

await isWell();
console.log(`resident at the start: ${memory()} MiB`);
const rounds = 4;
for (let round = 0; round < rounds; round++) {
  await inParallel(Number(values.disconnects) / rounds, 8, disconnect);
  await wait(500);
  console.log(
    `after ${((round + 1) * Number(values.disconnects)) / rounds} clients that left: ${memory()} MiB, well: ${await isWell()}`,
  );
}
for (let round = 0; round < rounds; round++) {
  const samples = fc.sample(
    fc.oneof(
      fc.tuple(
        fc.constant("/v1/completions"),
        completion.map((body) => JSON.stringify(body)),
      ),
      fc.tuple(
        fc.constant("/v1/chat/completions"),
        chat.map((body) => JSON.stringify(body)),
      ),
      fc.tuple(fc.constantFrom("/v1/completions", "/tokenize", "/detokenize"), raw),
    ),
    { numRuns: Number(values.random) / rounds, seed: round },
  );
  await inParallel(samples.length, 8, async (i) => {
    const [endpoint, body] = samples[i] as [string, string];
    const response = await post(endpoint, body);
    await response.text();
    count(response.status);
  });
  console.log(
    `after ${((round + 1) * Number(values.random)) / rounds} random requests: ${memory()} MiB, well: ${await isWell()}`,
  );
}
console.log(`answers to random requests: ${JSON.stringify(Object.fromEntries([...statuses].sort()))}`);
// senders that do not finish
const slow = Array.from({ length: 50 }, () => {
  const socket = connect(Number(port), "127.0.0.1");
  socket.on("error", () => {});
  socket.write("POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-length: 1000\r\n\r\n{");
  return socket;
});
await wait(300);
console.log(`with 50 slow senders well: ${await isWell()}`);
for (const socket of slow) socket.destroy();
child.kill("SIGTERM");
console.log(`ended with ${await new Promise((resolve) => child.once("exit", resolve))}`);
