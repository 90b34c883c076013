import { writeFileSync } from "node:fs";
import { type IncomingHttpHeaders, request } from "node:http";
import { connect } from "node:net";
import path from "node:path";
import { brotliCompressSync, deflateRawSync, deflateSync, gzipSync } from "node:zlib";
import Anthropic from "@anthropic-ai/sdk";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { hashKey, type RunningServer, type ServeJob, serve } from "../../src/serve/index.js";
import { temporaryDirectory } from "../temporary.js";

const directory = temporaryDirectory();
process.env.COPPICE_CACHE = path.join(directory, "cache");
const model = "tiny-teacher";
const start = (options: Partial<ServeJob> = {}): Promise<RunningServer> => {
  const models = [path.resolve(import.meta.dirname, "../../examples", model)];
  return serve({ models, port: 0, device: "cpu", threads: 1, logLevel: "silent", slots: 1, ...options });
};

let server: RunningServer;
beforeAll(async () => {
  server = await start({ maxBodyBytes: 1 << 20 });
  await server.ready;
});
afterAll(() => server.close());

const body = JSON.stringify({ model, prompt: "Once", max_tokens: 3, temperature: 0 });

interface Answer {
  readonly status: number;
  readonly headers: IncomingHttpHeaders;
  readonly text: string;
}

/** Sends a request with headers that fetch does not allow to set. */
const ask = (
  endpoint: string,
  headers: Record<string, string> = {},
  options: { readonly method?: string; readonly body?: string | Uint8Array; readonly url?: string } = {},
): Promise<Answer> =>
  new Promise((resolve, reject) => {
    const { hostname, port } = new URL(options.url ?? server.url);
    const method = options.method ?? (options.body === undefined ? "GET" : "POST");
    const sent = request({ hostname, port, path: endpoint, method, headers }, (response) => {
      const parts: Buffer[] = [];
      response.on("data", (part: Buffer) => parts.push(part));
      response.on("end", () =>
        resolve({
          status: response.statusCode ?? 0,
          headers: response.headers,
          text: Buffer.concat(parts).toString(),
        }),
      );
    });
    sent.on("error", reject);
    sent.end(options.body);
  });

/** All that comes back on a connection until the other side closes it. */
const raw = (text: string): Promise<string> =>
  new Promise((resolve, reject) => {
    const socket = connect(Number(new URL(server.url).port), "127.0.0.1", () => socket.write(text));
    let got = "";
    socket.on("data", (part) => {
      got += part;
    });
    socket.on("error", reject);
    socket.on("close", () => resolve(got));
  });

describe("a service without keys", () => {
  const { host, origin } = { host: "evil.example", origin: "https://evil.example" };

  it("answers to its own names only, so that none of a stranger's can lead here (DNS rebinding)", async () => {
    const { port } = new URL(server.url);
    for (const name of ["localhost", `localhost:${port}`, `127.0.0.1:${port}`, "[::1]", "LOCALHOST", "a.localhost"])
      expect((await ask("/v1/models", { host: name })).status, name).toBe(200);
    for (const name of [host, `${host}:${port}`, "localhost.evil.example", "127.0.0.1.evil.example", "8.8.8.8", "box"])
      for (const endpoint of ["/v1/models", "/", "/docs", "/v1/completions", "/v1/nothing"]) {
        const options = endpoint === "/v1/completions" ? { body } : {};
        const { status, text } = await ask(endpoint, { host: name }, options);
        expect([status, JSON.parse(text)], name + endpoint).toMatchObject([403, { error: { code: "foreign_site" } }]);
      }
    expect((await ask("/v1/health/live", { host })).status).toBe(200); // probes
  });

  it("does not answer other sites' pages, whatever they send", async () => {
    const { port } = new URL(server.url);
    const status = async (headers: Record<string, string>) => (await ask("/v1/completions", headers, { body })).status;
    for (const type of ["application/json", "text/plain", "application/x-www-form-urlencoded", "multipart/form-data"]) {
      expect(await status({ "content-type": type, origin })).toBe(403);
      expect(await status({ "content-type": type, origin: "null" })).toBe(403);
      expect(await status({ "content-type": type, "sec-fetch-site": "cross-site" })).toBe(403);
      expect(await status({ "content-type": type })).toBe(200); // no page
    }
    expect(await status({ host: `localhost:${port}`, origin: `http://localhost:${port}` })).toBe(200); // its own page
    expect((await ask("/", { "sec-fetch-site": "cross-site" })).status).toBe(200); // somebody follows a link
  });

  it("accepts the names and origins that its options list", async () => {
    const known = await start({
      allowedHosts: ["llm.example.org", ".lan"],
      corsOrigins: ["https://chat.example.org"],
    });
    const status = async (headers: Record<string, string>) =>
      (await ask("/v1/completions", headers, { body, url: known.url })).status;
    expect(await status({ host: "llm.example.org" })).toBe(200);
    expect(await status({ host: "box.lan:8000", origin: "https://llm.example.org" })).toBe(200);
    expect(await status({ host })).toBe(403);
    expect(await status({ origin: "https://chat.example.org" })).toBe(200);
    expect(await status({ origin })).toBe(403);
    const headers = { origin: "https://chat.example.org" };
    const { headers: got } = await ask("/v1/models", headers, { url: known.url });
    expect(got["access-control-expose-headers"]).toMatch(/x-request-id.*retry-after/);
    await known.close();
  });

  it("lets pages of all sites read its answers where its options say so", async () => {
    const open = await start({ corsOrigins: ["*"] });
    const headers = { origin };
    const { headers: got, status } = await ask("/v1/completions", headers, { body, url: open.url });
    expect(status).toBe(200);
    expect(got["access-control-allow-origin"]).toBe("*");
    await open.close();
  });

  it("that listens on a network answers to the names that it has there", async () => {
    const open = await start({ host: "0.0.0.0" });
    const url = open.url.replace("0.0.0.0", "127.0.0.1");
    for (const name of ["10.0.0.7:8000", "[fd00::1]", "coppice", "box.local", "host.docker.internal"])
      expect((await ask("/v1/models", { host: name }, { url })).status, name).toBe(200);
    for (const headers of [{ host }, { origin: "http://10.0.0.9" }] as Record<string, string>[])
      expect((await ask("/v1/models", headers, { url })).status).toBe(403);
    await open.close();
  });
});

describe("a service with keys", () => {
  it("asks for keys rather than for names, in whichever case Bearer is written", async () => {
    const keysFile = path.join(directory, "keys");
    writeFileSync(keysFile, hashKey("secret"));
    const { url, close } = await start({ keysFile });
    const status = async (headers: Record<string, string>) => (await ask("/v1/models", headers, { url })).status;
    const host = "llm.example.org";
    for (const scheme of ["Bearer", "bearer", "BEARER"])
      expect(await status({ host, authorization: `${scheme} secret` })).toBe(200);
    expect(await status({ host, "x-api-key": "secret" })).toBe(200);
    expect(await status({ host, authorization: "Basic secret" })).toBe(401);
    await close();
  });
});

/** A Zstandard frame of blocks that are stored, or of one byte that repeats (RFC 8878, section 3.1.1). */
function zstdFrame(blocks: readonly (Uint8Array | number)[]): Uint8Array {
  const head = Buffer.from([0x28, 0xb5, 0x2f, 0xfd, 0x00, 0x38]); // no size, a window of 128 KiB
  const parts = blocks.flatMap((block, i) => {
    const [type, size] = typeof block === "number" ? [1, block] : [0, block.length];
    const header = Number(i === blocks.length - 1) | (type << 1) | (size << 3);
    return [Buffer.from([header & 255, (header >> 8) & 255, header >> 16]), typeof block === "number" ? "a" : block];
  });
  return Buffer.concat([head, ...parts.map((part) => Buffer.from(part as Uint8Array))]);
}

describe("a compressed body", () => {
  const send = (packed: Uint8Array, encoding: string) =>
    ask("/v1/completions", { "content-encoding": encoding, "content-type": "application/json" }, { body: packed });
  /** Made by zstd 1.5. */
  const zstd = [
    "KLUv/SR8nQIAkoUSF5BNByz6yFLtPYGQwYuJmCv4Ck36P4gBlWFAH325QDe2j09AX6FF9C2/vgH9rDdsDwlJn58swuhtybT5rF8S5BtMi1mjnSssTQUBAJaQJQpt8cna",
    "KLUv/QRYtQIAkkUTGoBL0gHgxKK9PSHc8ZrcCBGDqPfEpamEDLAekcIJttEzwU4olytgFxlpsOmal8BeThUoDQ5z11XOYDvTIUzXWIRimoDHSeT2ogd0QwIBAJaQJQpt8cna",
  ];

  it.each<readonly [encoding: string, packed: Uint8Array]>([
    ["gzip", gzipSync(body)],
    ["x-gzip", gzipSync(body)],
    ["deflate", deflateSync(body)],
    ["deflate", deflateRawSync(body)],
    ["br", brotliCompressSync(body)],
    ["GZIP, identity", gzipSync(body)],
    ["zstd", zstdFrame([Buffer.from(body)])],
    ...zstd.map((one) => ["zstd", Buffer.from(one, "base64")] as const),
  ])("as %s is read", async (encoding, packed) => {
    const { status, text } = await send(packed, encoding);
    expect(status, text).toBe(200);
    expect(JSON.parse(text)).toMatchObject({ usage: { completion_tokens: 3 } });
  });

  it("is bounded after decompression too", async () => {
    const large = Buffer.alloc(4 << 20, 0x20);
    const bombs = [
      ["gzip", gzipSync(large)],
      ["deflate", deflateSync(large)],
      ["br", brotliCompressSync(large)],
      ["zstd", zstdFrame(Array.from({ length: 100 }, () => 1 << 17))],
      ["gzip, gzip", gzipSync(gzipSync(large))],
    ] as const;
    for (const [encoding, packed] of bombs) {
      expect(packed.length).toBeLessThan(1 << 20);
      expect((await send(packed, encoding)).status, encoding).toBe(413);
    }
  });

  it("of another encoding than it says, or of an unknown one, is refused", async () => {
    for (const encoding of ["gzip", "deflate", "br", "zstd"])
      expect((await send(Buffer.from(body), encoding)).status, encoding).toBe(400);
    expect((await send(zstdFrame([Buffer.from(body)]).subarray(0, 20), "zstd")).status).toBeGreaterThanOrEqual(400);
    for (const encoding of ["compress", "constructor", "gzip, gzip, gzip"])
      expect((await send(Buffer.from(body), encoding)).status, encoding).toBe(415);
  });
});

describe("over HTTP", () => {
  const streamed = JSON.stringify({ ...JSON.parse(body), stream: true });

  it("a client of HTTP/1.0 gets a stream without chunks, and a closed connection at its end", async () => {
    const head = `POST /v1/completions HTTP/1.0\r\nHost: localhost\r\nContent-Length: ${streamed.length}\r\n\r\n`;
    const got = await raw(head + streamed);
    const [headers = "", ...rest] = got.split("\r\n\r\n");
    expect(headers).not.toMatch(/transfer-encoding/i);
    expect(headers).toMatch(/x-accel-buffering: no/i);
    expect(rest.join("\r\n\r\n")).toMatch(/^data: \{.*\}\n\n(data: .*\n\n)*data: \[DONE\]\n\n$/);
  });

  it("a body that is too large is refused when it is announced", async () => {
    const head = `POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: ${1 << 30}\r\n\r\n`;
    expect(await raw(head)).toMatch(/^HTTP\/1\.1 413 /);
  });

  it("connections are kept for as long as proxies keep them, or as was asked", async () => {
    expect((await ask("/v1/models", { connection: "keep-alive" })).headers["keep-alive"]).toBe("timeout=65");
    const { url, close } = await start({ keepAliveSeconds: 7 });
    expect((await ask("/v1/models", { connection: "keep-alive" }, { url })).headers["keep-alive"]).toBe("timeout=7");
    await close();
  });

  it("a wrong method is answered otherwise than an unknown endpoint", async () => {
    for (const [method, endpoint, allow] of [
      ["GET", "/v1/chat/completions", "POST"],
      ["DELETE", "/v1/models", "GET, HEAD"],
      ["PUT", "/v1/models/tiny-teacher", "GET, HEAD"],
      ["POST", "/v1/health/live", "GET, HEAD"],
    ] as const) {
      const { status, headers, text } = await ask(endpoint, {}, { method });
      expect([status, headers.allow], text).toEqual([405, allow]);
    }
    expect((await ask("/v1/messages", {}, { method: "OPTIONS" })).headers.allow).toBe("POST");
    expect((await ask("/v1/models", {}, { method: "HEAD" })).status).toBe(200);
    expect((await ask("/v1/nothing")).status).toBe(404);
  });

  it("endpoints are found by the names that clients have for them", async () => {
    for (const endpoint of [
      "/v1/models/",
      "//v1//models",
      "/v1/v1/models",
      "/models",
      "/openai/v1/models",
      "/api/v1/models",
      "/v1/models/tiny-teacher/",
      "/models/tiny-teacher",
      "/health",
      "/ping",
      "/metrics",
      "/v1/health",
      "/version",
      "/healthz",
      "/readyz",
      "/livez",
      "/docs/",
      "/health/ready",
    ])
      expect((await ask(endpoint)).status, endpoint).toBe(200);
    for (const endpoint of ["/completions", "/v1/completions/", "/v1/v1/completions", "/openai/v1/completions"])
      expect((await ask(endpoint, {}, { body })).status, endpoint).toBe(200);
    expect((await ask("/v1/tokenize", {}, { body: '{"prompt":"a"}' })).status).toBe(200);
    const { text } = await ask("/v1/v1/messages", {}, { body: "{}" });
    expect(JSON.parse(text)).toMatchObject({ type: "error", error: { type: "invalid_request_error" } });
  });

  it("Anthropic's client lists the models in its own form", async () => {
    const anthropic = new Anthropic({ baseURL: server.url, apiKey: "none", maxRetries: 0 });
    const all: string[] = [];
    for await (const { id, type, display_name, created_at } of anthropic.models.list({ limit: 1 })) {
      all.push(id);
      expect([type, display_name, Number.isNaN(Date.parse(created_at))]).toEqual(["model", id, false]);
    }
    expect(all).toEqual([model]);
    expect(await anthropic.models.retrieve(model)).toMatchObject({ id: model, type: "model" });
    await expect(anthropic.models.retrieve("other")).rejects.toMatchObject({
      status: 404,
      error: { type: "error", error: { type: "not_found_error" } },
    });
  });
});
