import { spawnSync } from "node:child_process";
import { existsSync, writeFileSync } from "node:fs";
import path from "node:path";
import { describe, expect, it } from "vitest";
import { gguf, openGguf } from "../../src/checkpoint/gguf.js";
import { readTensor } from "../../src/checkpoint/index.js";
import {
  evaluate,
  exportModel,
  generate,
  inspect,
  measurePerplexity,
  pruneModel,
  quantize,
  runnableGguf,
} from "../../src/index.js";
import { serve } from "../../src/serve/index.js";
import { writeAnyGguf } from "../any-gguf.js";
import { temporaryDirectory } from "../temporary.js";

const root = path.resolve(import.meta.dirname, "../..");
const directory = temporaryDirectory();
const at = (...names: string[]) => path.join(directory, ...names);
process.env.COPPICE_CACHE = at("cache");
process.env.HF_HUB_OFFLINE = "1";
const cpu = { device: "cpu", threads: 1 } as const;

const run = (args: readonly string[], input = "") =>
  spawnSync(process.execPath, [path.join(root, "bin/coppice.cjs"), ...args], { input, encoding: "utf8" });

const mamba = await writeAnyGguf(at("mamba.gguf"), "mamba");
const experts = await writeAnyGguf(at("experts.gguf"), "dbrx");
const hybrid = await writeAnyGguf(at("hybrid.gguf"), "jamba");
const all = [
  ["one with states", mamba],
  ["one with experts", experts],
  ["one with states and attention", hybrid],
] as const;

describe("a GGUF file of an architecture that only llama.cpp knows", () => {
  it("is inspected: what it is, and what can be done with it", async () => {
    expect(await inspect(hybrid)).toMatchObject({
      architecture: "jamba",
      known: false,
      dimensions: { vocab: 512, hidden: 64, layers: 2, context: 512, heads: 4, kvHeads: [0, 2] },
      types: { f32: openGguf(hybrid).tensors.size },
    });
    const { stdout } = run(["inspect", experts]);
    expect(stdout).toMatch(/dbrx[\s\S]*quantized, run with llama\.cpp[\s\S]*experts +│ +4/);
    expect(stdout).toMatch(/note: .*"dbrx" is not supported.*generate, chat, serve/);
  });

  it.each(all)("%s writes text, the same each time", async (_, model) => {
    const job = { model, prompt: "One evening,", sampling: { temperature: 0, maxTokens: 12 }, ...cpu };
    const { text } = await generate(job);
    expect(text.length).toBeGreaterThan(0);
    expect((await generate(job)).text).toBe(text);
  });

  it("is quantized on the way, where another type is asked for", async () => {
    const file = await runnableGguf(experts, { kind: "q8_0" });
    expect(openGguf(file).tensors.get("blk.0.ffn_up_exps.weight")?.dtype).toBe("q8_0");
    expect(await runnableGguf(experts, {})).toBe(experts);
  });

  it("holds a conversation", () => {
    const flags = ["--max-tokens", "4", "--json", "--seed", "1", "--device", "cpu", "--threads", "1"];
    const { stdout, status, stderr } = run(["chat", mamba, ...flags], "Hello\nGood day\n/exit\n");
    expect(status, stderr).toBe(0);
    expect((JSON.parse(stdout) as { user: string }[]).map(({ user }) => user)).toEqual(["Hello", "Good day"]);
  });

  it("is quantized: routers, norms and convolutions stay as they are, the metadata too", async () => {
    const job = { model: experts, types: ["q8_0", "q4_0"] as const, out: at("q") };
    const { files } = await quantize(job);
    expect(files.map(({ name }) => name)).toEqual(["q8_0", "q4_0"]);
    const [before, after] = [openGguf(experts), openGguf(files[1]?.files[0] ?? "")];
    const dtype = (name: string) => after.tensors.get(name)?.dtype;
    expect(dtype("blk.1.ffn_down_exps.weight")).toBe("q4_0");
    for (const kept of ["blk.1.ffn_gate_inp.weight", "blk.0.attn_norm.weight"]) {
      expect(dtype(kept)).toBe("f32");
      expect(Buffer.compare(readTensor(after, kept), readTensor(before, kept))).toBe(0);
    }
    const changed = ["general.file_type", "general.quantization_version"];
    for (const [key, value] of before.metadata)
      if (!changed.includes(key)) expect(after.metadata.get(key)).toEqual(value);
    expect(after.metadata.get("general.file_type")).toEqual(gguf.uint32(2));
    await expect(quantize(job)).rejects.toThrow(/is there already/);
    const again = await quantize({ model: files[0]?.files[0] ?? "", types: ["q4_0"], out: at("again.gguf") });
    expect(again.files[0]?.notes[0]).toMatch(/were quantized already/);
  });

  it("is exported to another type, and split", async () => {
    const { files } = await exportModel({ model: mamba, out: at("half.gguf"), dtype: "f16", shardBytes: 100_000 });
    expect(files.length).toBeGreaterThan(1);
    const [first = ""] = files;
    expect(openGguf(first).tensors.get("blk.0.ssm_in.weight")?.dtype).toBe("f16");
    expect(openGguf(first).tensors.get("blk.0.ssm_conv1d.weight")?.dtype).toBe("f32");
    const { tokens } = await generate({
      model: first,
      prompt: "One",
      sampling: { temperature: 0, maxTokens: 3 },
      ...cpu,
    });
    expect(tokens).toBeGreaterThan(0);
  });

  it("is measured on benchmarks by llama.cpp", async () => {
    const job = {
      models: [experts],
      tasks: ["piqa", "xlsum_english"],
      limit: 4,
      maxTokens: 4,
      data: path.join(root, "test/fixtures/benchmarks"),
      ...cpu,
    };
    const { models } = await evaluate({ ...job, engine: "llama.cpp" });
    expect(models[0]?.parameters).toBe((await inspect(experts)).parameters);
    expect(models[0]?.tasks.map(({ task, documents }) => [task, documents.measured])).toEqual([
      ["piqa", 4],
      ["xlsum_english", 4],
    ]);
    await expect(evaluate(job)).rejects.toThrow(/"dbrx" is not supported.*--engine llama\.cpp/);
  });

  it.each(all)("%s is served, to several at once", async (_, model) => {
    const server = await serve({ models: [model], port: 0, logLevel: "silent", ...cpu });
    const ask = async (prompt: string) => {
      const body = JSON.stringify({ prompt, max_tokens: 6, temperature: 0, ignore_eos: true });
      const answer = await fetch(`${server.url}/v1/completions`, { method: "POST", body });
      expect(answer.status).toBe(200);
      return ((await answer.json()) as { choices: { text: string }[] }).choices[0]?.text;
    };
    try {
      const alone = await ask("One evening");
      const together = await Promise.all(["One evening", "One morning", "A kite"].map(ask));
      expect(together[0]).toBe(alone);
      expect(await ask("One evening")).toBe(alone);
    } finally {
      await server.close();
    }
  });

  it("is refused by what computes with our own engine, with what it is and what can be done", async () => {
    const data = [at("text.txt")];
    writeFileSync(at("text.txt"), "One evening a kite flew over the hill. ".repeat(200));
    const refused = [
      () => measurePerplexity({ model: mamba, data }),
      () => pruneModel({ model: mamba, target: "0.8x", data, out: at("pruned") }),
      () => exportModel({ model: mamba, out: at("directory") }),
    ];
    for (const job of refused)
      await expect(job()).rejects.toThrow(
        /the architecture "mamba" is not supported; supported are llama, .*\. GGUF files of any/,
      );
    const training = ["--data", at("text.txt"), "--tokens", "1K", "--out", at("distilled")];
    const distilled = run(["distill", mamba, "--teacher", mamba, ...training]);
    expect(distilled).toMatchObject({ status: 1, stderr: expect.stringMatching(/"mamba" is not supported/) });
    for (const more of [{ data }, { importanceFile: at("none.safetensors") }, { data, report: true }])
      await expect(quantize({ model: mamba, types: ["q4_0"], out: at("x.gguf"), ...more })).rejects.toThrow(
        /"mamba" is not supported.*give --type alone/,
      );
    for (const name of ["pruned", "distilled", "directory", "x.gguf"]) expect(existsSync(at(name))).toBe(false);
  });

  it("ends no process of ours, whatever llama.cpp does", async () => {
    const broken = await writeAnyGguf(at("broken.gguf"), "jamba", { keys: { "ssm.inner_size": gguf.uint32(64) } });
    const message = /broken\.gguf: llama\.cpp cannot run it \(.*GGML_ASSERT\(2 \* n_embd == d_inner\)/;
    await expect(quantize({ model: broken, types: ["q8_0"], out: at("broken-q.gguf") })).rejects.toThrow(message);
    expect(existsSync(at("broken-q.gguf"))).toBe(false);
    const { status, signal, stderr } = run(["generate", broken, "--prompt", "a", "--device", "cpu"]);
    expect({ status, signal }).toEqual({ status: 1, signal: null });
    expect(stderr).toMatch(message);
  });
});
