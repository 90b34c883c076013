import path from "node:path";
import { setTimeout as wait } from "node:timers/promises";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { type RunningFoundry, startFoundry, withTenants } from "../../src/foundry/index.js";
import { filesOf, startHub, type TestHub } from "../hub.js";
import { temporaryDirectory } from "../temporary.js";

const root = path.resolve(import.meta.dirname, "../..");
const TOKEN = `hf_${"anna".repeat(8)}`;

interface Json {
  readonly id: string;
  readonly name: string;
  readonly state: string;
  readonly error: { readonly message: string } | null;
  readonly licence: string | null;
  readonly parameters: number | null;
  readonly job_id: string | null;
  readonly best: { readonly share: number };
  readonly result: { readonly scores: Readonly<Record<string, Readonly<Record<string, string>>>> };
  readonly data: readonly Json[];
}

describe("the foundry with a hub", () => {
  const data = temporaryDirectory();
  const endpointBefore = process.env.HF_ENDPOINT;
  let hub: TestHub;
  let foundry: RunningFoundry;
  let keys: Record<"anna" | "bert", string>;
  beforeAll(async () => {
    const files = filesOf(path.join(root, "examples/tiny-teacher"));
    files.set("README.md", Buffer.from("---\nlicense: mit\n---\n# Tiny\n"));
    hub = await startHub({
      "models/org/tiny": { files },
      "models/org/gated": { files, token: TOKEN },
      "datasets/baber/piqa": { files: filesOf(path.join(root, "test/fixtures/benchmarks/baber/piqa")) },
    });
    process.env.HF_ENDPOINT = hub.endpoint;
    const options = { data, logLevel: "silent" as const };
    keys = await withTenants(options, async (tenants) => ({
      anna: (await tenants.addKey("anna", "laptop", "user")).key,
      bert: (await tenants.addKey("bert", "laptop", "user")).key,
    }));
    foundry = await startFoundry({ ...options, port: 0, workers: 1, device: "cpu", threads: 1 });
  });
  afterAll(async () => {
    await foundry?.close();
    await hub?.close();
    if (endpointBefore === undefined) delete process.env.HF_ENDPOINT;
    else process.env.HF_ENDPOINT = endpointBefore;
  });

  const send = (who: keyof typeof keys, method: string, at: string, body?: object) =>
    fetch(foundry.url + at, {
      method,
      headers: { authorization: `Bearer ${keys[who]}` },
      body: body === undefined ? null : JSON.stringify(body),
    });
  const ask = async (who: keyof typeof keys, method: string, at: string, body?: object): Promise<Json> =>
    (await send(who, method, at, body)).json() as Promise<Json>;
  const ended = async (who: keyof typeof keys, id: string): Promise<Json> => {
    for (;;) {
      const job = await ask(who, "GET", `/v1/jobs/${id}`);
      if (job.state !== "queued" && job.state !== "running") return job;
      await wait(100);
    }
  };
  const textOf = async (who: keyof typeof keys, job: string, name: string): Promise<string> =>
    (await send(who, "GET", `/v1/jobs/${job}/artifacts/${name}`)).text();

  it("plans for a hub model before it is downloaded, makes it smaller, and keeps its licence", async () => {
    const { id: model } = await ask("anna", "POST", "/v1/models", { hub_id: "org/tiny" });
    const plan = await ask("anna", "POST", "/v1/plans", { model, device: "phone-4gb" });
    expect(plan.best.share).toBe(1);
    expect(hub.requests.filter((request) => request.endsWith("safetensors"))).toEqual([]);
    expect((await ask("anna", "GET", `/v1/models/${model}`)).parameters).toBeGreaterThan(500_000);
    const spec = { model, device: "phone-4gb", quantization: ["q8_0"], evaluate: { tasks: ["piqa"], limit: 4 } };
    const job = await ended("anna", (await ask("anna", "POST", "/v1/jobs", spec)).id);
    expect(job).toMatchObject({ state: "done", error: null, name: "org/tiny for phone-4gb" });
    expect(Object.keys(job.result.scores.piqa ?? {})).toEqual(["teacher"]);
    const card = await textOf("anna", job.id, "README.md");
    expect(card).toContain('license: "mit"\nbase_model: "org/tiny"\n');
    const files = (await ask("anna", "GET", `/v1/jobs/${job.id}/artifacts`)).data.map(({ name }) => name);
    expect(files).toContain("org-tiny-for-phone-4gb-q8_0.gguf");
    const models = (await ask("anna", "GET", "/v1/models")).data;
    expect(models.find(({ job_id: jobId }) => jobId === job.id)).toMatchObject({ name: job.name, licence: "mit" });
  });

  it("measures a model on the hub's benchmarks, and reveals no paths of this machine", async () => {
    const model = (await ask("anna", "GET", "/v1/models")).data.find(({ name }) => name === "Tiny teacher")!.id;
    const created = await ask("anna", "POST", "/v1/evaluations", { model, tasks: ["piqa:1"], limit: 8 });
    const job = await ended("anna", created.id);
    expect(job).toMatchObject({ state: "done", error: null });
    expect(Object.keys(job.result.scores)).toEqual(["piqa"]);
    expect(job.result.scores.piqa?.["Tiny teacher"]).toMatch(/^\d/);
    const files = (await ask("anna", "GET", `/v1/jobs/${job.id}/artifacts`)).data.map(({ name }) => name);
    expect(files.map((name) => name.replace(/_2\d.*(?=\.)/, ""))).toEqual(
      expect.arrayContaining(["report.html", "results.json", "results.json", "samples_piqa.jsonl"]),
    );
    for (const name of files) {
      const text = await textOf("anna", job.id, name);
      expect([text.includes(data), text.includes(root)], name).toEqual([false, false]);
    }
    expect(JSON.parse(await textOf("anna", job.id, "results.json")).models[0].model).toBe("Tiny teacher");
  });

  it("takes only benchmarks for tasks and ids for models, never files", async () => {
    const model = (await ask("anna", "GET", "/v1/models")).data.at(-1)!.id;
    for (const task of [
      "package.json",
      "vitest.config.ts",
      "./tasks/own.js",
      "constructor",
      "no_such_task",
      "piqa:5000",
    ]) {
      const refused = await send("anna", "POST", "/v1/evaluations", { model, tasks: [task] });
      expect(refused.status, task).toBe(400);
      expect(((await refused.json()) as Json).error?.message).toContain("is not a benchmark");
    }
    // a directory of this machine, not a model of the hub
    const { id } = await ask("anna", "POST", "/v1/models", { hub_id: "examples/tiny-teacher" });
    expect((await ask("anna", "POST", "/v1/plans", { model: id, device: "phone-4gb" })).error?.message).toContain(
      "has no model examples/tiny-teacher",
    );
    for (const id of ["org/tiny@../../../x", "../tiny", "org/..", "hf://org/tiny"])
      expect((await send("anna", "POST", "/v1/models", { hub_id: id })).status, id).toBe(400);
  });

  it("keeps what one tenant's token opens from other tenants", async () => {
    const plan = async (who: keyof typeof keys) => {
      const { id: model } = await ask(who, "POST", "/v1/models", { hub_id: "org/gated" });
      return send(who, "POST", "/v1/plans", { model, device: "phone-4gb" });
    };
    expect((await plan("anna")).status).toBe(400);
    expect((await send("anna", "PUT", "/v1/hub-token", { token: TOKEN })).status).toBe(204);
    expect((await plan("anna")).status).toBe(200);
    const refused = await plan("bert");
    expect([refused.status, ((await refused.json()) as Json).error?.message]).toEqual([
      400,
      expect.stringContaining("private or gated"),
    ]);
  });
});
