import { createHash } from "node:crypto";
import { existsSync, readdirSync, readFileSync, statSync } from "node:fs";
import { createServer, type Server } from "node:http";
import type { AddressInfo } from "node:net";
import path from "node:path";
import { parquetWriteBuffer } from "hyparquet-writer";
import { afterAll, beforeAll, describe, expect, it, vi } from "vitest";
import { openCheckpoint, resolveModel } from "../../src/checkpoint/index.js";
import { findDataFiles } from "../../src/data/index.js";
import { Datasets } from "../../src/evaluate/index.js";
import { temporaryDirectory } from "../temporary.js";

const model = path.resolve(import.meta.dirname, "../fixtures/models/llama-1");
const COMMIT = "0123456789abcdef0123456789abcdef01234567";
const directory = temporaryDirectory();
const split = parquetWriteBuffer({ columnData: [{ name: "text", data: ["a question"], type: "STRING" }] });
const dataset = new Map([
  ["data/train.jsonl", Buffer.from('{"text":"hello"}\n')],
  ["default/test/0000.parquet", Buffer.from(split)],
]);
const files = new Map(readdirSync(model).map((name) => [name, readFileSync(path.join(model, name))]));
const quantized = ["q8/m-00001-of-00002.gguf", "q8/m-00002-of-00002.gguf", "m-q4.gguf"];
for (const name of quantized) files.set(name, Buffer.from(`the content of ${name}`));
const requests: string[] = [];

/** A real HTTP server that answers as a hub does for one model and one data set; `gated` needs a token. */
function answer(server: Server): void {
  server.on("request", (request, response) => {
    const url = new URL(request.url ?? "/", "http://hub");
    requests.push(`${request.method} ${url.pathname}`);
    const json = (value: unknown, status = 200) => {
      response.writeHead(status, { "content-type": "application/json" }).end(JSON.stringify(value));
    };
    const gated = url.pathname.includes("org/gated");
    if (gated && request.headers.authorization !== "Bearer hf_secret") return json({ error: "gated" }, 401);
    const content = url.pathname.includes("datasets/") ? dataset : files;
    const entry = (name: string) => ({
      ...{ type: "file", path: name, size: content.get(name)?.length ?? 0 },
      oid: createHash("sha1")
        .update(content.get(name) ?? "")
        .digest("hex"),
      lastCommit: { id: COMMIT, title: "x", date: "2026-01-01T00:00:00Z" },
    });
    if (!/org\/(model|gated|data)/.test(url.pathname)) return json({ error: "not found" }, 404);
    if (url.pathname.includes("/revision/")) return json({ sha: COMMIT, id: "org/model" });
    if (url.pathname.includes("/tree/")) return json([...content.keys()].map(entry));
    if (url.pathname.includes("/paths-info/")) {
      const chunks: Buffer[] = [];
      request.on("data", (chunk) => chunks.push(chunk));
      request.on("end", () => json((JSON.parse(Buffer.concat(chunks).toString()).paths as string[]).map(entry)));
      return;
    }
    const [, name = ""] = /\/resolve\/[0-9a-f]+\/(.+)$/.exec(url.pathname) ?? [];
    const body = content.get(name);
    if (body === undefined) return json({ error: "no such file" }, 404);
    const range = /bytes=(\d+)-(\d+)/.exec(request.headers.range ?? "");
    const [from, to] =
      range === null ? [0, body.length - 1] : [Number(range[1]), Math.min(Number(range[2]), body.length - 1)];
    const headers = {
      etag: `"${entry(name).oid}"`,
      "content-range": `bytes ${from}-${to}/${body.length}`,
      "content-length": to - from + 1,
    };
    response.writeHead(range === null ? 200 : 206, headers).end(body.subarray(from, to + 1));
  });
}

describe("a hub", () => {
  const server = createServer();
  let endpoint = "";
  beforeAll(async () => {
    vi.spyOn(console, "debug").mockImplementation(() => {});
    answer(server);
    await new Promise<void>((resolve) => server.listen(0, "127.0.0.1", resolve));
    endpoint = `http://127.0.0.1:${(server.address() as AddressInfo).port}`;
  });
  afterAll(() => void server.close());
  const cacheDir = path.join(directory, "hub");

  it("gives a model once, with progress; afterwards it comes from the cache, also offline", async () => {
    const progress: number[] = [];
    const options = {
      endpoint,
      cacheDir,
      onProgress: ({ doneBytes, totalBytes }: { doneBytes: number; totalBytes: number }) =>
        void progress.push(doneBytes / totalBytes),
    };
    const found = await resolveModel("org/model", options);
    expect(found).toBe(path.join(cacheDir, "models--org--model", "snapshots", COMMIT));
    expect(openCheckpoint(found).source.tensors.size).toBe(21);
    expect(progress.at(-1)).toBe(1);
    const downloads = () => requests.filter((request) => request.includes("/resolve/")).length;
    const before = downloads();
    expect(await resolveModel("org/model", options)).toBe(found);
    expect(await resolveModel(`org/model@${COMMIT}`, options)).toBe(found);
    expect(downloads()).toBe(before);
    expect(await resolveModel("org/model", { cacheDir, offline: true, endpoint: "http://127.0.0.1:9" })).toBe(found);
  });

  it("gives a GGUF file of a repository, with all parts of a split one and nothing else", async () => {
    const own = { endpoint, cacheDir: path.join(directory, "gguf") };
    const found = await resolveModel(`org/model/${quantized[0]}`, own);
    expect(readFileSync(found, "utf8")).toBe(`the content of ${quantized[0]}`);
    expect(readdirSync(path.dirname(found)).sort()).toEqual(["m-00001-of-00002.gguf", "m-00002-of-00002.gguf"]);
    expect(readdirSync(path.resolve(found, "../.."))).toEqual(["q8"]);
    await expect(resolveModel("org/model/none.gguf", own)).rejects.toThrow(/no file that matches none.gguf/);
  });

  it("gives a data set's files", async () => {
    const [file] = await findDataFiles(["hf://datasets/org/data"], { endpoint, cacheDir });
    expect(readFileSync(file!, "utf8")).toBe('{"text":"hello"}\n');
    expect(statSync(file!).isFile()).toBe(true);
  });

  it("gives a benchmark's split, with the commit that it is of", async () => {
    const datasets = new Datasets({ hub: { endpoint, cacheDir } });
    const { rows, version } = await datasets.split({ repo: "org/data" }, "test");
    expect(rows.map(({ record }) => record)).toEqual([{ text: "a question" }]);
    expect(version).toBe(COMMIT);
    expect(requests).toContain("GET /api/datasets/org/data/revision/refs%2Fconvert%2Fparquet");
    const own = await datasets.split({ repo: "org/data" }, "train"); // not among the Parquet copies
    expect(own.rows.map(({ record }) => record)).toEqual([{ text: "hello" }]);
    await expect(datasets.split({ repo: "org/data", config: "other" }, "test")).rejects.toThrow(/no file that matches/);
    const offline = new Datasets({ hub: { endpoint: "http://127.0.0.1:9", cacheDir, offline: true } });
    expect((await offline.split({ repo: "org/data" }, "test")).version).toBe(COMMIT);
  });

  it("that wants a token is told it, and says so when it is missing", async () => {
    const own = { endpoint, cacheDir: path.join(directory, "gated") };
    await expect(resolveModel("org/gated", own)).rejects.toThrow(/private or gated: set HF_TOKEN/);
    expect(existsSync(await resolveModel("org/gated", { ...own, token: "hf_secret" }))).toBe(true);
  });

  it("that cannot help is reported with what to do", async () => {
    await expect(resolveModel("org/other", { endpoint, cacheDir })).rejects.toThrow(
      /has no model org\/other at revision main/,
    );
    await expect(resolveModel("org/model", { endpoint: "http://127.0.0.1:9", cacheDir })).rejects.toThrow(
      /could not be downloaded .* --offline/,
    );
    await expect(resolveModel("org/new", { offline: true, cacheDir })).rejects.toThrow(/is not in the cache/);
    await expect(resolveModel("no such place", { endpoint })).rejects.toThrow(/no model no such place/);
  });
});
