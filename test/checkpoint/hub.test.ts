import { existsSync, mkdirSync, readdirSync, readFileSync, statSync } from "node:fs";
import path from "node:path";
import { parquetWriteBuffer } from "hyparquet-writer";
import { afterAll, beforeAll, describe, expect, it, vi } from "vitest";
import { resolveConfig, resolveModel } from "../../src/checkpoint/index.js";
import { findDataFiles } from "../../src/data/index.js";
import { Datasets } from "../../src/evaluate/index.js";
import { inspect } from "../../src/jobs/index.js";
import { openCheckpoint } from "../../src/models/index.js";
import { COMMIT, filesOf, startHub, type TestHub } from "../hub.js";
import { temporaryDirectory } from "../temporary.js";

const model = path.resolve(import.meta.dirname, "../fixtures/models/llama-1");
const directory = temporaryDirectory();
const split = parquetWriteBuffer({ columnData: [{ name: "text", data: ["a question"], type: "STRING" }] });
const dataset = new Map([
  ["data/train.jsonl", Buffer.from('{"text":"hello"}\n')],
  ["default/test/0000.parquet", Buffer.from(split)],
]);
const files = filesOf(model);
const quantized = ["q8/m-00001-of-00002.gguf", "q8/m-00002-of-00002.gguf", "m-q4.gguf"];
for (const name of quantized) files.set(name, Buffer.from(`the content of ${name}`));

describe("a hub", () => {
  let hub: TestHub;
  let endpoint = "";
  beforeAll(async () => {
    vi.spyOn(console, "debug").mockImplementation(() => {});
    hub = await startHub({
      "models/org/model": { files },
      "models/org/gated": { files, token: "hf_secret" },
      "datasets/org/data": { files: dataset },
    });
    ({ endpoint } = hub);
  });
  afterAll(() => hub.close());
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
    const downloads = () => hub.requests.filter((request) => request.includes("/resolve/")).length;
    const before = downloads();
    expect(await resolveModel("org/model", options)).toBe(found);
    expect(await resolveModel(`org/model@${COMMIT}`, options)).toBe(found);
    expect(downloads()).toBe(before);
    expect(await resolveModel("org/model", { cacheDir, offline: true, endpoint: "http://127.0.0.1:9" })).toBe(found);
  });

  it("gives a model to several at once, who share a cache", async () => {
    const options = { endpoint, cacheDir: path.join(directory, "shared") };
    const found = await Promise.all([1, 2, 3].map(() => resolveModel("org/model", options)));
    expect(new Set(found).size).toBe(1);
    expect(openCheckpoint(found[0]!).source.tensors.size).toBe(21);
    expect(readdirSync(path.join(options.cacheDir, ".locks/models--org--model"))).toEqual([]);
  });

  it("gives a GGUF file of a repository, with all parts of a split one and nothing else", async () => {
    const own = { endpoint, cacheDir: path.join(directory, "gguf") };
    const found = await resolveModel(`org/model/${quantized[0]}`, own);
    expect(readFileSync(found, "utf8")).toBe(`the content of ${quantized[0]}`);
    expect(readdirSync(path.dirname(found)).sort()).toEqual(["m-00001-of-00002.gguf", "m-00002-of-00002.gguf"]);
    expect(readdirSync(path.resolve(found, "../.."))).toEqual(["q8"]);
    await expect(resolveModel("org/model/none.gguf", own)).rejects.toThrow(/no file that matches none.gguf/);
  });

  it("gives what is asked of it by hf://, whatever lies here under the same name", async () => {
    const before = process.cwd();
    const here = path.join(temporaryDirectory(), "here");
    mkdirSync(path.join(here, "org/model"), { recursive: true });
    process.chdir(here);
    try {
      expect(await resolveModel("org/model", { endpoint, cacheDir })).toBe("org/model");
      expect(await resolveModel("hf://org/model", { endpoint, cacheDir })).toContain(COMMIT);
    } finally {
      process.chdir(before);
    }
    await expect(resolveModel(`hf://${model}`, { endpoint, cacheDir })).rejects.toThrow(/not a hub id/);
    await expect(resolveModel("hf://org/model@../../../x", { endpoint, cacheDir })).rejects.toThrow(/not a branch/);
  });

  it("gives a configuration without the weights", async () => {
    const own = path.join(directory, "configuration");
    const found = await resolveConfig("org/model", { endpoint, cacheDir: own });
    expect(readdirSync(found)).toEqual(["config.json"]);
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
    expect(hub.requests).toContain("GET /api/datasets/org/data/revision/refs%2Fconvert%2Fparquet");
    const own = await datasets.split({ repo: "org/data" }, "train"); // not among the Parquet copies
    expect(own.rows.map(({ record }) => record)).toEqual([{ text: "hello" }]);
    await expect(datasets.split({ repo: "org/data", config: "other" }, "test")).rejects.toThrow(/no file that matches/);
    const offline = new Datasets({ hub: { endpoint: "http://127.0.0.1:9", cacheDir, offline: true } });
    expect((await offline.split({ repo: "org/data" }, "test")).version).toBe(COMMIT);
  });

  it("stops where it is asked to", async () => {
    const abort = new AbortController();
    const stopped = resolveModel("org/model", {
      endpoint,
      cacheDir: path.join(directory, "stopped"),
      signal: abort.signal,
      onProgress: () => abort.abort(),
    });
    await expect(stopped).rejects.toThrow(/the download of org\/model was stopped/);
  });

  it("describes a model from the headers of its weights", async () => {
    const before = hub.requests.length;
    const own = path.join(directory, "described");
    const described = await inspect("org/model", { hub: { endpoint, cacheDir: own } });
    expect(described).toEqual(await inspect(model));
    const asked = hub.requests.slice(before).filter((request) => request.includes("/resolve/"));
    expect(asked.some((request) => request.includes("config.json"))).toBe(true);
    const blobs = readdirSync(own, { recursive: true }).map(String);
    expect(blobs.some((name) => name.endsWith(".safetensors"))).toBe(false);
    // offline, that is not taken for the whole model
    await expect(resolveModel("org/model", { endpoint, cacheDir: own, offline: true })).rejects.toThrow(
      /only the configuration of org.model at main is in the cache .* without --offline/,
    );
    await expect(inspect("org/none", { hub: { endpoint, cacheDir: own } })).rejects.toThrow(/no model org\/none/);
  });

  it("that wants a token is told it, and says so when it is missing", async () => {
    const own = { endpoint, cacheDir: path.join(directory, "gated") };
    await expect(resolveModel("org/gated", own)).rejects.toThrow(
      /shows no model org.gated: there is none, or it is private or gated and HF_TOKEN/,
    );
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
    await expect(resolveModel(`${model}+lora:no such place`, { endpoint })).rejects.toThrow(
      /no LoRA adapter no such place/,
    );
  });
});
