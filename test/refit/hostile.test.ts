import { mkdtempSync, readdirSync } from "node:fs";
import path from "node:path";
import { describe, expect, it } from "vitest";
import type { Passage } from "../../src/evaluate/residual-stream.js";
import { type ModelTensors, openCheckpoint } from "../../src/models/index.js";
import { prune } from "../../src/prune/index.js";
import { surgeonScores } from "../../src/prune/surgeon-scores.js";
import { exportGguf } from "../../src/quantize/index.js";
import { oneTestBackend } from "../devices.js";
import { openAlgebraBackend } from "../linear-algebra/backend.js";
import { logitsOf } from "../models/architectures.js";
import { randomModel } from "../random-model.js";
import { temporaryDirectory } from "../temporary.js";
import {
  changed,
  cutBySurgeon,
  divergence,
  fixtures,
  fixtureTokens,
  passageOver,
  planOf,
  randomTokens,
  type TokenRows,
} from "./cuts.js";

const temporary = temporaryDirectory();
const newDirectory = () => mkdtempSync(path.join(temporary, "parts-"));
const { calibration, evaluation } = fixtureTokens;
const CUTS = [
  { ffn: 36, heads: 2 },
  { hidden: 24, ffn: 36 },
];

type Change = Parameters<typeof changed>[1];
/** Fills parameters whose names contain some text, from an element on. */
const filled =
  (text: string, value: number, from = 0, to?: number): Change =>
  (name, data) => {
    if (name.includes(text)) data.fill(value, from, to);
  };

const damages: readonly (readonly [string, Change])[] = [
  ["a norm's gains are zero", filled("layers.0.input_layernorm", 0)],
  ["some gains are zero", filled("norm", 0, 3, 9)],
  ["the final gains are zero", filled("model.norm.weight", 0)],
  [
    "the final gains are negative",
    (name, data) => name === "model.norm.weight" && data.set(data.map((v) => -Math.abs(v))),
  ],
  ["some neurons are silent", filled("up_proj", 0, 0, 320)],
  ["all neurons of a layer are silent", filled("layers.0.mlp.up_proj", 0)],
  ["a layer writes nothing", filled("layers.0.mlp.down_proj", 0)],
  ["the attention is silent", filled("v_proj", 0)],
  ["some tokens have embeddings of zero", filled("embed_tokens", 0, 0, 320)],
];

const data: readonly (readonly [string, TokenRows, number])[] = [
  ["tokens of one kind", calibration.map((row) => row.map(() => 5)), 4],
  ["one batch", calibration.slice(0, 4), 4],
  ["fewer tokens than channels", [calibration[0]!.slice(0, 10)], 1],
  ["one token", [[7]], 1],
];

describe.each(oneTestBackend)("on %s", (_, options) => {
  const { backend } = openAlgebraBackend(options);

  /** Cuts a model in every way. @returns the divergences of the cuts alone and refitted */
  async function divergences(passage: Passage, original: ModelTensors, cuts: readonly Record<string, number>[]) {
    const tokens = evaluation;
    const reference = await logitsOf(backend, original, tokens);
    const statistics = await surgeonScores(passage, original);
    const results: { readonly before: number; readonly after: number }[] = [];
    for (const wanted of cuts) {
      const cut = { passage, original, wanted, directory: newDirectory(), statistics };
      const { plan, kept } = await planOf(cut);
      const [plain, refitted] = [prune(original, plan, kept), await cutBySurgeon(cut)];
      const of = async (model: ModelTensors) =>
        divergence(reference, await logitsOf(backend, model, tokens), original.model.vocabSize);
      results.push({ before: await of(plain), after: await of(refitted) });
    }
    return results;
  }

  describe.each(["tied", "untied"])("a model with a head that is %s", (name) => {
    const model = openCheckpoint(path.join(fixtures, name));

    it.each(damages)("is refitted where %s", async (_what, change) => {
      const original = changed(model, change);
      for (const { before, after } of await divergences(passageOver(backend, calibration), original, CUTS))
        expect(after).toBeLessThan(1.25 * before + 1e-9); // what is regressed is not the divergence, and data are few
    });

    it.each(data)("is finite when it is calibrated on %s", async (_what, tokens, batch) => {
      for (const { after } of await divergences(passageOver(backend, tokens, { batch }), model, CUTS))
        expect(after).toBeLessThan(Number.POSITIVE_INFINITY);
    });

    it.each([
      ["model.embed_tokens.weight", Number.NaN],
      ["model.layers.0.input_layernorm.weight", Number.NaN],
      ["model.layers.0.self_attn.q_proj.weight", Number.NaN],
      ["model.layers.1.mlp.down_proj.weight", Number.POSITIVE_INFINITY],
      ["model.norm.weight", Number.NaN],
    ])("is refused where %s holds %f", async (parameter, value) => {
      const original = changed(model, filled(parameter, value, 7, 8));
      await expect(divergences(passageOver(backend, calibration), original, CUTS)).rejects.toThrow(
        `${parameter} holds ${value}`,
      );
    });

    it("is refused where its activations overflow", async () => {
      const original = changed(model, (parameter, values) => {
        if (parameter.includes("layers.0.mlp")) values.set(values.map((v) => 1e13 * v));
      });
      const directory = newDirectory();
      const cut = { passage: passageOver(backend, calibration), original, wanted: { ffn: 36 }, directory };
      await expect(cutBySurgeon(cut)).rejects.toThrow(
        /second moments of layers\.0\.mlp\.down_proj\.input are not finite/,
      );
      // with scores of another kind, the refit is the first to see it
      const statistics = { scores: new Map([0, 1].map((i) => [`layers.${i}.ffn`, new Float32Array(48)])) };
      const streamMoments = { rows: 0, columns: 0, data: new Float32Array() };
      await expect(cutBySurgeon({ ...cut, statistics: { ...statistics, streamMoments } })).rejects.toThrow(
        /moments of .*layers\.0\.mlp\.down_proj.* are not finite/,
      );
      expect(readdirSync(directory)).not.toContain("last.safetensors");
    });
  });

  it.each(["q8_0", "q4_0"] as const)("a GGUF file of kind %s is cut and refitted", async (kind) => {
    const sizes = {
      hidden_size: 64,
      intermediate_size: 96,
      num_hidden_layers: 2,
      num_attention_heads: 4,
      head_dim: 16,
    };
    const { checkpoint } = randomModel(newDirectory(), "model", sizes, 0.3);
    const file = path.join(newDirectory(), `${kind}.gguf`);
    await exportGguf(file, checkpoint, { kind, threads: 1 });
    const original = openCheckpoint(file);
    const passage = passageOver(backend, randomTokens(original.model, 32, 16), { batch: 8 });
    for (const { before, after } of await divergences(passage, original, [{ ffn: 72 }, { hidden: 48 }]))
      expect(after).toBeLessThan(before);
  });
});
