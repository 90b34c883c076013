import { createHash, randomUUID } from "node:crypto";
import { once } from "node:events";
import { existsSync, readFileSync, writeFileSync } from "node:fs";
import { type IncomingMessage, request } from "node:http";
import path from "node:path";
import fc from "fast-check";
import { OpenAPIClientAxios } from "openapi-client-axios";
import pg from "pg";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { openGguf } from "../../src/checkpoint/index.js";
import { connectionOf } from "../../src/foundry/database.js";
import { type RunningFoundry, startFoundry, withTenants } from "../../src/foundry/index.js";
import { requestsOf } from "../openapi-requests.js";
import { temporaryDirectory } from "../temporary.js";
import { DATABASES, type TestDatabase } from "./databases.js";

const corpus = path.resolve(import.meta.dirname, "../../examples/corpus/stories.txt.gz");
/** A short job. */
const QUICK = {
  tokens: 5000,
  sequence_length: 32,
  batch_size: 128,
  calibration_samples: 8,
  refit_samples: 16,
  target: "hidden=96,ffn=320",
};

/** The fields of answers that tests read. */
interface Json {
  readonly [name: string]: unknown;
  readonly id: string;
  readonly name: string;
  readonly sha256: string;
  readonly step: number;
  readonly key: string;
  readonly state: string;
  readonly result: {
    readonly models: Readonly<Record<"teacher" | "pruned" | "student", { parameters: number; loss: number }>>;
  };
  readonly data: readonly Json[];
  readonly stages: readonly Json[];
  readonly error: { readonly message: string; readonly code: string | null };
}

for (const { name: engine, missing, start } of DATABASES)
  describe.skipIf(missing)(`the foundry on ${engine}`, () => {
    const data = temporaryDirectory();
    let database: TestDatabase;
    let foundry: RunningFoundry;
    let keys: Record<"anna" | "bert" | "boss" | "viewer", string>;
    let revoked: readonly boolean[];
    beforeAll(async () => {
      database = await start();
      const options = { data, databaseUrl: database.url, logLevel: "silent" as const };
      keys = await withTenants(options, async (tenants) => ({
        anna: (await tenants.addKey("anna", "laptop", "user")).key,
        bert: (await tenants.addKey("bert", "laptop", "user")).key,
        boss: (await tenants.addKey("ops", "boss", "admin")).key,
        viewer: (await tenants.addKey("anna", "screen", "viewer")).key,
      }));
      revoked = await withTenants(options, async (tenants) => [
        await tenants.removeKey("nothing"),
        await tenants.removeKey("751c78f2-4a8d-4ed5-9c03-461f36d63fa8"),
      ]);
      foundry = await startFoundry({
        ...options,
        port: 0,
        workers: 1,
        device: "cpu",
        threads: 1,
        maxUploadBytes: 1 << 20,
      });
    });
    afterAll(async () => {
      await foundry?.close();
      await database?.stop();
    });

    const ask = async (
      who: keyof typeof keys | undefined,
      method: string,
      at: string,
      body?: unknown,
      headers = {},
    ) => {
      const response = await fetch(foundry.url + at, {
        method,
        headers: who === undefined ? headers : { authorization: `Bearer ${keys[who]}`, ...headers },
        body:
          typeof body === "string" || body instanceof Uint8Array ? (body as string) : (JSON.stringify(body) ?? null),
      });
      const text = await response.text();
      return {
        status: response.status,
        json: (/^application\/json/.test(response.headers.get("content-type") ?? "") ? JSON.parse(text) : {}) as Json,
        text,
        headers: response.headers,
      };
    };
    /** A file, with the key of anna. */
    const download = async (at: string): Promise<Buffer> => {
      const response = await fetch(foundry.url + at, { headers: { authorization: `Bearer ${keys.anna}` } });
      return Buffer.from(await response.arrayBuffer());
    };
    const embedded = async (): Promise<string> =>
      (await ask("anna", "GET", "/v1/models")).json.data.find(({ shared }: Json) => shared)!.id;
    const ended = async (who: keyof typeof keys, id: string): Promise<Json> => {
      for (;;) {
        const { json } = await ask(who, "GET", `/v1/jobs/${id}`);
        if (!["queued", "running"].includes(json.state)) return json;
        await new Promise((resolve) => setTimeout(resolve, 200));
      }
    };

    it("revokes no key that there is not", () => {
      expect(revoked).toEqual([false, false]);
    });

    it("decides what suits its own machine when a job is created, and cuts nothing for 1x", async () => {
      const spec = { model: await embedded(), tokens: 2000, calibration_samples: 8, candidates: 1 };
      const here = await ask("anna", "POST", "/v1/jobs", { ...spec, device: "this-machine" });
      expect(here.status).toBe(201);
      expect(here.json.spec).toMatchObject({ target: "1x", quantization: [expect.any(String)] }); // it fits as it is
      const done = await ended("anna", here.json.id);
      expect(done).toMatchObject({ state: "done", result: { plan: null } });
      const plan = await ask("anna", "POST", "/v1/plans", { model: spec.model, device: "this-machine" });
      expect(plan.json.device).toMatchObject({ id: "this-machine", usableBytes: expect.any(Number) });
      await ask("anna", "DELETE", `/v1/jobs/${here.json.id}`);
    });

    it("runs a job from end to end for a client generated from its OpenAPI document", async () => {
      const definition = (await (await fetch(`${foundry.url}/openapi.json`)).json()) as never;
      const api = new OpenAPIClientAxios({
        definition,
        axiosConfigDefaults: { baseURL: foundry.url, headers: { authorization: `Bearer ${keys.anna}` } },
      });
      const client = (await api.init()) as unknown as Record<
        string,
        (parameters?: unknown, body?: unknown, config?: unknown) => Promise<{ status: number; data: Json }>
      >;
      const devices = await client.getV1Devices!();
      expect(devices.data.data.map(({ id }: Json) => id)).toContain("phone-4gb");
      const content = readFileSync(corpus);
      const dataset = await client.postV1Datasets!({ name: "stories.txt.gz" }, content, {
        headers: { "content-type": "application/octet-stream" },
      });
      expect(dataset.data).toMatchObject({
        bytes: content.length,
        sha256: createHash("sha256").update(content).digest("hex"),
      });
      const model = (await client.getV1Models!()).data.data[0]!;
      const plan = await client.postV1Plans!(null, { model: model.id, device: "phone-4gb" });
      expect(plan.data.best).toMatchObject({ share: 1, fits: true });
      const spec = { ...QUICK, model: model.id, dataset: dataset.data.id, device: "phone-4gb", name: "Smaller" };
      const created = await client.postV1Jobs!(null, spec, { headers: { "idempotency-key": "one" } });
      expect(created.status).toBe(201);
      expect((await client.postV1Jobs!(null, spec, { headers: { "idempotency-key": "one" } })).data.id).toBe(
        created.data.id,
      );
      expect(
        (await ask("anna", "POST", "/v1/jobs", { ...spec, tokens: 6000 }, { "idempotency-key": "one" })).status,
      ).toBe(409);
      const job = await ended("anna", created.data.id);
      expect(job).toMatchObject({ state: "done", error: null });
      expect(job.stages.map(({ name }: Json) => name)).toEqual([
        "measure teacher",
        "calibrate",
        "statistics",
        "search",
        "prune",
        "measure pruned",
        "distill",
        "measure student",
        "gguf q8_0",
        "measure q8_0",
      ]);
      const { teacher, pruned, student } = job.result.models;
      expect(student.parameters).toBeLessThan(teacher.parameters);
      expect(student.loss).toBeLessThan(pruned.loss);

      const { data: files } = (await client.getV1JobsIdArtifacts!({ id: job.id })).data;
      expect(files.map(({ name }) => name)).toEqual(
        expect.arrayContaining(["README.md", "Smaller-q8_0.gguf", "model.safetensors", "report.html"]),
      );
      for (const { name, sha256 } of files) {
        const bytes = await download(`/v1/jobs/${job.id}/artifacts/${name}`);
        expect(createHash("sha256").update(bytes).digest("hex"), name).toBe(sha256);
      }
      const card = await ask("anna", "GET", `/v1/jobs/${job.id}/artifacts/README.md`);
      expect(card.text).toContain('license: "apache-2.0"');
      expect(card.text).toContain(`| student | ${(student.parameters / 1000).toPrecision(3)} K |`);
      const part = await ask("anna", "GET", `/v1/jobs/${job.id}/artifacts/README.md`, undefined, {
        range: "bytes=4-9",
      });
      expect([part.status, part.text]).toEqual([206, card.text.slice(4, 10)]);
      const ranged = (range: string) =>
        ask("anna", "GET", `/v1/jobs/${job.id}/artifacts/README.md`, undefined, { range });
      const size = Buffer.byteLength(card.text);
      const behind = await ranged(`bytes=${size}-`);
      expect([behind.status, behind.headers.get("content-range")]).toEqual([416, `bytes */${size}`]);
      for (const ignored of ["bytes=9-2", "bytes=-"]) expect((await ranged(ignored)).text).toBe(card.text);

      const own = (await client.getV1Models!()).data.data.find(({ job_id: id }: Json) => id === job.id)!;
      expect(own).toMatchObject({
        name: "Smaller",
        state: "ready",
        licence: "apache-2.0",
        parameters: student.parameters,
      });
      const written = await ask("anna", "POST", `/v1/models/${own.id}/completions`, {
        prompt: "Tom had a",
        max_tokens: 8,
        temperature: 0,
      });
      expect(written.text).toMatch(/^event: text\ndata: \{"text":"[\s\S]*event: end/);
      const events = await ask("anna", "GET", `/v1/jobs/${job.id}/events`);
      expect(events.text).toContain('"loss":');
      expect(events.text).toMatch(/event: end\ndata: \{"state":"done"\}\s*$/);
      const curve = (await client.getV1JobsIdMetrics!({ id: job.id })).data.data;
      expect(curve.length).toBeGreaterThan(1);
      expect(curve.map(({ step }) => step)).toEqual(curve.map(({ step }) => step).sort((a, b) => a - b));

      // the files have the job's name, and reveal no paths of this machine
      const gguf = path.join(temporaryDirectory(), "smaller.gguf");
      const all = `/v1/jobs/${job.id}/artifacts`;
      writeFileSync(gguf, await download(`${all}/Smaller-q8_0.gguf`));
      expect(openGguf(gguf).metadata.get("general.name")?.value).toBe("Smaller");
      for (const name of ["report.html", "report.json", "README.md", "metrics.jsonl"])
        expect((await ask("anna", "GET", `${all}/${name}`)).text, name).not.toContain(data);

      const stored = path.join(data, "files/tenants/anna/jobs", job.id);
      expect(existsSync(stored)).toBe(true);
      expect((await client.deleteV1JobsId!({ id: job.id })).status).toBe(204);
      for (const at of [`/v1/jobs/${job.id}`, all, `/v1/models/${own.id}`])
        expect((await ask("anna", "GET", at)).status, at).toBe(404);
      expect(existsSync(stored)).toBe(false);
      expect((await ask("anna", "GET", "/v1/me")).json.used_bytes).toBe(content.length);
    });

    it("deletes a job only when it has ended", async () => {
      const spec = { ...QUICK, tokens: 50_000_000, model: await embedded() };
      const { id } = (await ask("anna", "POST", "/v1/jobs", spec)).json;
      expect((await ask("anna", "DELETE", `/v1/jobs/${id}`)).status).toBe(409);
      await ask("anna", "POST", `/v1/jobs/${id}/cancel`);
      await ended("anna", id);
      expect((await ask("viewer", "DELETE", `/v1/jobs/${id}`)).status).toBe(403);
      expect((await ask("anna", "DELETE", `/v1/jobs/${id}`)).status).toBe(204);
      expect((await ask("anna", "DELETE", `/v1/jobs/${id}`)).status).toBe(404);
      expect(existsSync(path.join(data, "files/workspaces", id))).toBe(false);
    });

    it("shows a tenant nothing of another's", async () => {
      const model = await embedded();
      const dataset = (await ask("anna", "POST", "/v1/datasets?name=a.txt", "Tom had a kite. ".repeat(50))).json.id;
      const own = (await ask("anna", "POST", "/v1/models", { name: "Mine" })).json.id;
      const job = (await ask("anna", "POST", "/v1/jobs", { ...QUICK, model, name: "Mine" })).json.id;
      await ask("anna", "POST", `/v1/jobs/${job}/cancel`);
      const paths: [string, string, unknown?][] = [
        ["GET", `/v1/jobs/${job}`],
        ["POST", `/v1/jobs/${job}/cancel`],
        ["POST", `/v1/jobs/${job}/retry`],
        ["DELETE", `/v1/jobs/${job}`],
        ["GET", `/v1/jobs/${job}/events`],
        ["GET", `/v1/jobs/${job}/metrics`],
        ["GET", `/v1/jobs/${job}/artifacts`],
        ["GET", `/v1/jobs/${job}/artifacts/README.md`],
        ["GET", `/v1/models/${own}`],
        ["PUT", `/v1/models/${own}/files/config.json`, "{}"],
        ["POST", `/v1/models/${own}/complete`],
        ["DELETE", `/v1/models/${own}`],
        ["POST", `/v1/models/${own}/completions`, { prompt: "x" }],
        ["GET", `/v1/datasets/${dataset}`],
        ["DELETE", `/v1/datasets/${dataset}`],
        ["POST", "/v1/plans", { model: own, device: "phone-4gb" }],
        ["POST", "/v1/jobs", { ...QUICK, model: own }],
        ["POST", "/v1/jobs", { ...QUICK, model, dataset }],
        ["POST", "/v1/evaluations", { model: own, tasks: ["arc_easy"] }],
      ];
      for (const [method, at, body] of paths)
        expect((await ask("bert", method, at, body)).status, `${method} ${at}`).toBe(404);
      for (const at of ["/v1/jobs", "/v1/datasets", "/v1/evaluations"])
        expect((await ask("bert", "GET", at)).json.data).toEqual([]);
      expect((await ask("bert", "GET", "/v1/models")).json.data.every(({ shared }: Json) => shared)).toBe(true);
      expect((await ask("anna", "GET", `/v1/datasets/${dataset}`)).status).toBe(200);
      expect((await ask("anna", "DELETE", `/v1/datasets/${dataset}`)).status).toBe(204);
      expect((await ask("anna", "DELETE", `/v1/models/${model}`)).status).toBe(403);
    });

    it("allows each role only what it may do", async () => {
      expect((await ask(undefined, "GET", "/v1/jobs")).status).toBe(401);
      expect((await ask(undefined, "GET", "/v1/health/ready")).status).toBe(200);
      expect((await ask("viewer", "GET", "/v1/jobs")).status).toBe(200);
      expect((await ask("viewer", "POST", "/v1/models", { name: "x" })).status).toBe(403);
      expect((await ask("anna", "GET", "/v1/keys")).status).toBe(403);
      const created = await ask("boss", "POST", "/v1/keys", { tenant: "carl", name: "phone", role: "viewer" });
      expect(created.status).toBe(201);
      const listed = await ask("boss", "GET", "/v1/keys");
      expect(listed.text).not.toContain(created.json.key);
      const me = () => fetch(`${foundry.url}/v1/me`, { headers: { authorization: `Bearer ${created.json.key}` } });
      expect(await (await me()).json()).toMatchObject({ tenant: "carl", role: "viewer" });
      expect((await ask("boss", "DELETE", `/v1/keys/${created.json.id}`)).status).toBe(204);
      expect((await me()).status).toBe(401);
    });

    it("keeps quotas", async () => {
      const set = (quota: object) =>
        ask("boss", "PUT", "/v1/quotas/bert", { max_bytes: null, max_jobs: null, max_tokens: null, ...quota });
      const model = await embedded();
      await set({ max_bytes: 100, max_tokens: 1000 });
      expect((await ask("bert", "POST", "/v1/datasets?name=a.txt", "x".repeat(101))).json.error.code).toBe(
        "quota_exceeded",
      );
      expect((await ask("bert", "POST", "/v1/jobs", { ...QUICK, model })).json.error).toMatchObject({
        param: "tokens",
        code: "quota_exceeded",
      });
      // tokens count in whole steps; where nothing is cut there are none
      await set({ max_tokens: QUICK.tokens });
      expect((await ask("bert", "POST", "/v1/jobs", { ...QUICK, model })).json.error).toMatchObject({
        param: "tokens",
      });
      const uncut = await ask("bert", "POST", "/v1/jobs", { model, target: "1x" });
      expect(uncut.status).toBe(201);
      await ask("bert", "POST", `/v1/jobs/${uncut.json.id}/cancel`);
      await ended("bert", uncut.json.id);
      await set({ max_bytes: 1000 });
      const send = (name: string) => ask("bert", "POST", `/v1/datasets?name=${name}`, "word ".repeat(120));
      const sent = await Promise.all(["a.txt", "b.txt", "c.txt"].map(send));
      expect(sent.map(({ status }) => status).sort()).toEqual([201, 403, 403]);
      const { id: own } = (await ask("bert", "POST", "/v1/models", { name: "own" })).json;
      const put = () => ask("bert", "PUT", `/v1/models/${own}/files/config.json`, { text: "word ".repeat(60) });
      expect([(await put()).status, (await put()).status]).toEqual([201, 201]); // in the place of the first
      await set({ max_bytes: 900 });
      expect((await ask("bert", "POST", "/v1/jobs", { ...QUICK, model })).json.error.code).toBe("quota_exceeded");
      await ask("bert", "DELETE", `/v1/models/${own}`);
      await ask("bert", "DELETE", `/v1/datasets/${sent.find(({ status }) => status === 201)!.json.id}`);
      await set({ max_jobs: 1 });
      const all = await Promise.all(
        Array.from({ length: 4 }, () => ask("bert", "POST", "/v1/jobs", { ...QUICK, model })),
      );
      expect(all.map(({ status }) => status).sort()).toEqual([201, 403, 403, 403]);
      await ask("bert", "POST", `/v1/jobs/${all.find(({ status }) => status === 201)!.json.id}/cancel`);
      await ended("bert", all.find(({ status }) => status === 201)!.json.id);
      const repeat = () => ask("bert", "POST", "/v1/jobs", { ...QUICK, model }, { "idempotency-key": "once" });
      const [first, second] = [await repeat(), await repeat()];
      expect([first.status, second.status, second.json.id]).toEqual([201, 201, first.json.id]);
      expect((await ask("bert", "HEAD", `/v1/jobs/${first.json.id}/events`)).status).toBe(200);
      await ask("bert", "POST", `/v1/jobs/${first.json.id}/cancel`);
      await ended("bert", first.json.id);
      await set({ max_jobs: 0 });
      expect((await ask("bert", "POST", "/v1/jobs", { ...QUICK, model })).json.error.code).toBe("quota_exceeded");
      const retried = await ask("bert", "POST", `/v1/jobs/${first.json.id}/retry`);
      expect(retried.json.error.code).toBe("quota_exceeded");
      await set({});
    });

    it("refuses what cannot be stored or made, by name", async () => {
      const model = await embedded();
      expect((await ask("bert", "POST", "/v1/datasets?name=a%00.txt", "some text")).status).toBe(400);
      expect((await ask("bert", "POST", "/v1/jobs", { ...QUICK, model, name: "half \ud800" })).status).toBe(400);
      const job = await ask("bert", "POST", "/v1/jobs", { ...QUICK, model, target: "banana" });
      expect([job.status, job.json.error]).toMatchObject([400, { param: "target" }]);
    });

    it("takes conversations as data", async () => {
      const turns = [
        { role: "user", content: "Who has a kite?" },
        { role: "assistant", content: "Mira." },
      ];
      const { status, json } = await ask(
        "bert",
        "POST",
        "/v1/datasets?name=chat.jsonl",
        JSON.stringify({ messages: turns }),
      );
      expect(status).toBe(201);
      expect((await ask("bert", "DELETE", `/v1/datasets/${json.id}`)).status).toBe(204);
      const mistyped = JSON.stringify({ messages: ["Who has a kite?"] });
      expect((await ask("bert", "POST", "/v1/datasets?name=chat.jsonl", mistyped)).status).toBe(400);
    });

    it("refuses uploads that are not what their names say, and keeps nothing of them", async () => {
      const send = (name: string, body: string | Uint8Array) =>
        ask("bert", "POST", `/v1/datasets?name=${encodeURIComponent(name)}`, body);
      const pickle = Buffer.from("80049500", "hex");
      for (const [name, body] of [
        ["a.bin", "text"],
        ["../../etc/passwd", "text"],
        ["a.txt", ""],
        ["a.txt", pickle],
        ["a.txt", "PK\u0003\u0004zip"],
        ["a.txt", "a\0b"],
        ["a.txt", Buffer.from([0xff, 0xfe, 0xfd, 0x41])],
        ["a.txt.gz", "no gzip"],
        ["a.parquet", "PAR0"],
        ["a.jsonl", '{"text":'],
        ["a.parquet", `PAR1${"x".repeat(100)}`],
      ] as const) {
        const { status, json } = await send(name, body);
        expect([status, typeof json.error?.message], `${name} ${body.slice(0, 8)}`).toEqual([400, "string"]);
        expect(json.error.message).not.toContain(data);
      }
      expect((await send("a.txt", "x".repeat((1 << 20) + 1))).status).toBe(413);
      const model = (await ask("bert", "POST", "/v1/models", { name: "Evil" })).json.id;
      const put = (name: string, body: string | Uint8Array) =>
        ask("bert", "PUT", `/v1/models/${model}/files/${encodeURIComponent(name)}`, body);
      for (const [name, body] of [
        ["pytorch_model.bin", pickle],
        ["model.safetensors", pickle],
        ["../config.json", "{}"],
        ["..%2fconfig.json", "{}"],
        ["config.json", "\0"],
        ["x.gguf", "nope"],
        ["model.safetensors", "x".repeat(40)],
      ] as const)
        expect((await put(name, body)).status, name).toBe(400);
      expect((await ask("bert", "POST", `/v1/models/${model}/complete`)).json.error.code).toBe("invalid_model");
      await put("config.json", '{"model_type":"llama"}');
      const incomplete = await ask("bert", "POST", `/v1/models/${model}/complete`);
      expect([incomplete.status, incomplete.json.error.code]).toEqual([400, "invalid_model"]);
      expect(incomplete.json.error.message).not.toContain(data);
      expect((await ask("bert", "DELETE", `/v1/models/${model}`)).status).toBe(204);
      expect((await ask("bert", "GET", "/v1/me")).json.used_bytes).toBe(0);
    });

    it("stores no upload that ends after its model is gone", async () => {
      const model = (await ask("bert", "POST", "/v1/models", { name: "Gone" })).json.id;
      const upload = request(`${foundry.url}/v1/models/${model}/files/config.json`, {
        method: "PUT",
        headers: { authorization: `Bearer ${keys.bert}` },
      });
      upload.write('{"model_type":');
      const answer = once(upload, "response") as Promise<[IncomingMessage]>;
      await ask("bert", "DELETE", `/v1/models/${model}`);
      upload.end('"llama"}');
      const [response] = await answer;
      response.resume();
      expect(response.statusCode).toBe(404);
    });

    it("takes an uploaded model, file by file", async () => {
      const directory = path.resolve(import.meta.dirname, "../../examples/tiny-teacher");
      await ask("boss", "PUT", "/v1/quotas/bert", { max_bytes: null, max_jobs: null, max_tokens: null });
      const model = (await ask("bert", "POST", "/v1/models", { name: "Sent" })).json.id;
      const put = (name: string) =>
        ask("bert", "PUT", `/v1/models/${model}/files/${name}`, readFileSync(path.join(directory, name)));
      for (const name of ["config.json", "tokenizer.json", "tokenizer_config.json"])
        expect((await put(name)).status).toBe(201);
      expect((await put("model.safetensors")).status).toBe(413); // 1 MiB is the most here
      const refused = await ask("bert", "POST", `/v1/models/${model}/complete`);
      expect(refused.status).toBe(400);
      await ask("bert", "DELETE", `/v1/models/${model}`);
    });

    it("keeps a hub token encrypted", async () => {
      const token = `hf_${"s3cret".repeat(5)}`;
      expect((await ask("anna", "PUT", "/v1/hub-token", { token })).status).toBe(204);
      expect((await ask("anna", "GET", "/v1/me")).json.hub_token).toBe(true);
      expect((await ask("bert", "GET", "/v1/me")).json.hub_token).toBe(false);
      const url = database.url ?? `socket:${path.join(data, "socket")}`;
      const client = new pg.Client(connectionOf(url));
      await client.connect();
      const { rows } = await client.query("select tenant, sealed from foundry.hub_tokens");
      await client.end();
      expect(rows).toHaveLength(1);
      expect(Buffer.from(rows[0].sealed, "base64").toString("latin1")).not.toContain("s3cret");
      expect((await ask("anna", "DELETE", "/v1/hub-token")).status).toBe(204);
    });

    it("never answers with 500, neither valid requests nor nearly valid ones", async () => {
      const document = (await (await fetch(`${foundry.url}/openapi.json`)).json()) as Json;
      const model = await embedded();
      const some = fc.constantFrom(model, randomUUID());
      const known = {
        id: some,
        model: fc.constant(model),
        tokens: fc.constant(1000),
        max_tokens: fc.constant(2),
        hub_id: fc.constant("a/b"),
        name: fc.constantFrom("a.txt", "README.md", "config.json"),
      };
      const statuses: Record<number, number> = {};
      for (const { method, path: at, body, contentType } of fc.sample(requestsOf(document, known), {
        numRuns: 250,
        seed: 7,
      })) {
        if (at.includes("/keys") || at.includes("/events")) continue;
        const { status, text } = await ask(
          "boss",
          method,
          at,
          body,
          contentType ? { "content-type": contentType } : {},
        );
        statuses[status] = (statuses[status] ?? 0) + 1;
        expect(status, `${method} ${at} ${body}: ${text.slice(0, 300)}`).toBeLessThan(500);
      }
      expect(statuses[200]).toBeGreaterThan(20);
      for (const { id, state } of (await ask("boss", "GET", "/v1/jobs?limit=200")).json.data)
        if (state === "queued" || state === "running") await ask("boss", "POST", `/v1/jobs/${id}/cancel`);
    });
  });
