/**
 * What a service must live through: clients that leave in the middle of a stream, requests made at random from its own OpenAPI
 * document, bodies that are none or too large, slow senders, and its end while it is busy. Tells whether it still answers, whether
 * every request was answered, and its resident memory on the way. Ends with 1 where something was not as it must be.
 *
 *   npm run build && npx tsx bench/serve-faults.ts [--model examples/tiny-teacher] [--disconnects 1000] [--random 10000]
 */
import { connect } from "node:net";
import path from "node:path";
import { setTimeout as wait } from "node:timers/promises";
import { parseArgs } from "node:util";
import fc from "fast-check";
import { type Json, type Known, requestsOf } from "../test/openapi-requests.js";
import { Answers, checks, inParallel, Service } from "./faults.js";

const { values } = parseArgs({
  options: {
    model: { type: "string", default: "examples/tiny-teacher" },
    disconnects: { type: "string", default: "1000" },
    random: { type: "string", default: "10000" },
    rounds: { type: "string", default: "4" },
    seed: { type: "string", default: "0" },
  },
});
const [disconnects, random, rounds] = [Number(values.disconnects), Number(values.random), Number(values.rounds)];
const MAX_BODY = 1 << 20;

const flags = ["--port", "0", "--device", "cpu", "--threads", "1", "--log-level", "error", "--json"];
const service = await Service.start(["serve", values.model, ...flags, "--max-body", `${MAX_BODY}`, "--queue", "200"]);
const { url, port } = service;
const { check } = checks;
const post = (endpoint: string, body: string | Uint8Array<ArrayBuffer>, signal?: AbortSignal) =>
  fetch(url + endpoint, { method: "POST", body, ...(signal && { signal }) });
const isWell = async (): Promise<boolean> =>
  (await post("/v1/completions", JSON.stringify({ prompt: "Tom", max_tokens: 4 }))).status === 200;
/** What it computes or lets wait. */
const busy = async (): Promise<number> => {
  const text = await (await fetch(`${url}/v1/metrics`)).text();
  return [...text.matchAll(/^vllm:num_requests_(?:running|waiting) (\d+)/gm)].reduce(
    (sum, [, n]) => sum + Number(n),
    0,
  );
};

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

async function leaving(): Promise<void> {
  for (let round = 1; round <= rounds; round++) {
    await inParallel(disconnects / rounds, 8, disconnect);
    await wait(500);
    const left = await busy();
    check(
      (await isWell()) && left === 0,
      `${(round * disconnects) / rounds} clients left: ${service.memory} MiB, ${left} still computed`,
    );
  }
}

/** Keeps requests that are well formed from taking long, and lets many of them be answered. */
const lengths = { max_tokens: 6, max_completion_tokens: 6, max_output_tokens: 6, n: 3 };
const known: Known = {
  model: fc.constantFrom(path.basename(values.model), undefined),
  ...Object.fromEntries(Object.entries(lengths).map(([name, max]) => [name, fc.integer({ min: 1, max })])),
  logit_bias: fc.dictionary(fc.nat(600).map(String), fc.integer({ min: -100, max: 100 }), { maxKeys: 3 }),
  prompt: fc.oneof(fc.constant("Tom had a"), fc.array(fc.nat(540), { minLength: 1, maxLength: 9 })),
};

async function atRandom(): Promise<void> {
  const document = (await (await fetch(`${url}/openapi.json`)).json()) as Json;
  const requests = requestsOf(document, known);
  const answers = new Answers(({ method, operation }) => (method === "GET" ? "GET" : operation.replace(/^postV1/, "")));
  for (let round = 1; round <= rounds; round++) {
    await answers.make(requests, random / rounds, Number(values.seed) + round, async (request) => {
      const { method, path: at, contentType, body } = request;
      const headers = contentType === undefined ? {} : { "content-type": contentType };
      const response = await fetch(url + at, { method, headers, ...(body !== undefined && { body }) });
      return { status: response.status, text: await response.text() };
    });
    check(await isWell(), `${answers.made} requests from the document: ${service.memory} MiB`);
  }
  answers.report();
}

async function malformed(): Promise<void> {
  const encoder = new TextEncoder();
  const invalid = new Uint8Array([...encoder.encode('{"prompt":"'), 0xc3, 0x28, 0xff, ...encoder.encode('"}')]);
  const deep = `${"[".repeat(100_000)}${"]".repeat(100_000)}`;
  const bodies: [string, string | Uint8Array<ArrayBuffer>, number][] = [
    ["nothing", "", 400],
    ["no JSON", "{", 400],
    ["invalid UTF-8", invalid, 400],
    ["half a surrogate", '{"prompt":"\\ud800","max_tokens":1}', 200],
    ["100000 lists in each other", deep, 400],
    ["a prompt too long", JSON.stringify({ prompt: "long ".repeat(20_000), max_tokens: 1 }), 400],
    ["a body too large", `{"prompt":"${"x".repeat(2 * MAX_BODY)}"}`, 413],
    ["a key __proto__", '{"__proto__":{"stream":true},"prompt":"Tom","max_tokens":1}', 400],
    ["a schema without end", JSON.stringify({ prompt: "Tom", max_tokens: 2, guided_json: { $ref: "#" } }), 400],
    [
      "a regular expression too large",
      JSON.stringify({ prompt: "Tom", max_tokens: 2, guided_regex: "(a{1,1000}){1,1000}" }),
      400,
    ],
  ];
  for (const [name, body, status] of bodies) {
    const got = (await post("/v1/completions", body)).status;
    check(got === status, `${name}: ${got}`);
  }
  const large = await service.raw(
    `POST /v1/completions HTTP/1.1\r\nhost: localhost\r\ncontent-length: ${1 << 30}\r\n\r\n`,
  );
  check(large?.includes("413") === true, `1 GiB announced: ${large}`);
  const lines = [
    "GET /%ff%fe HTTP/1.1\r\nhost: localhost\r\n\r\n",
    "nonsense\r\n\r\n",
    `GET / HTTP/1.1\r\nhost: localhost\r\nx: ${"y".repeat(1 << 20)}\r\n\r\n`,
  ];
  for (const text of lines) {
    const got = await service.raw(text);
    check(/ 4\d\d /.test(got ?? ""), `${JSON.stringify(text.slice(0, 30))}: ${got}`);
  }
  check(await isWell(), `well: ${service.memory} MiB`);
}

async function slowSenders(): Promise<void> {
  const sockets = Array.from({ length: 200 }, () => {
    const socket = connect(port, "127.0.0.1");
    socket.on("error", () => {});
    socket.write("POST /v1/completions HTTP/1.1\r\nhost: localhost\r\ncontent-length: 1000\r\n\r\n{");
    return socket;
  });
  await wait(300);
  check(await isWell(), `with ${sockets.length} slow senders well: ${service.memory} MiB`);
  for (const socket of sockets) socket.destroy();
  // and readers that do not read
  const readers = Array.from({ length: 20 }, () => {
    const socket = connect(port, "127.0.0.1").pause();
    const body = JSON.stringify({ prompt: "Tom", max_tokens: 400, stream: true, logprobs: 20 });
    socket.on("error", () => {});
    socket.write(`POST /v1/completions HTTP/1.1\r\nhost: localhost\r\ncontent-length: ${body.length}\r\n\r\n${body}`);
    return socket;
  });
  await wait(300);
  check(await isWell(), `with ${readers.length} who do not read well: ${service.memory} MiB`);
  for (const socket of readers) socket.destroy();
}

/** Its end while 32 clients ask without pause: each request that was taken is answered whole, others are told or refused. */
async function endUnderLoad(): Promise<void> {
  const seen = { whole: 0, told: 0, refused: 0, cut: 0 };
  let ending = false;
  const clients = Array.from({ length: 32 }, async () => {
    while (!ending || seen.refused === 0) {
      try {
        const response = await post("/v1/completions", JSON.stringify({ prompt: "Tom", max_tokens: 60, stream: true }));
        try {
          const text = await response.text();
          if (response.status === 503) {
            seen.told++;
            return;
          }
          if (text.trimEnd().endsWith("data: [DONE]")) seen.whole++;
          else seen.cut++;
        } catch {
          seen.cut++;
        }
      } catch {
        if (!ending) throw new Error("refused before its end");
        seen.refused++;
        return;
      }
    }
  });
  await wait(1000);
  ending = true;
  service.stop();
  const code = await service.ended;
  await Promise.all(clients);
  check(code === 0 && seen.cut === 0, `SIGTERM while 32 ask: ended with ${code}; ${JSON.stringify(seen)}`);
}

await isWell();
console.log(`    at the start: ${service.memory} MiB`);
await leaving();
await atRandom();
await malformed();
await slowSenders();
await leaving();
await endUnderLoad();
process.exitCode = checks.failed ? 1 : 0;
