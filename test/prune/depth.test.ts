import path from "node:path";
import { afterAll, describe, expect, it } from "vitest";
import { perplexity } from "../../src/evaluate/index.js";
import { Backend } from "../../src/ggml/index.js";
import { loadWeights, openCheckpoint } from "../../src/models/index.js";
import {
  type DepthMethod,
  type IsPossible,
  keptIndices,
  layerOrder,
  planWithLayers,
  prune,
  type Scores,
} from "../../src/prune/index.js";
import { Random } from "../../src/system/random.js";
import { temporaryDirectory } from "../temporary.js";
import { streamOf } from "../tokens.js";

const teacher = openCheckpoint(path.resolve(import.meta.dirname, "../../examples/tiny-teacher"));
const LAYERS = teacher.model.layerCount;
const random = new Random(5);
const ids = Array.from({ length: 65 }, () => random.integer(teacher.model.vocabSize));
const validation = streamOf(ids, temporaryDirectory());
const measuring = { computeType: "f32", sequenceLength: 32, maxSequences: 2 } as const;

describe("the order in which layers are cut", () => {
  const backend = Backend.open({ device: "cpu" });
  const weights = loadWeights(backend, teacher.model, teacher.source, { dtype: "f32", trainable: false });
  afterAll(() => {
    weights.free();
    backend.free();
  });

  const order = (method: DepthMethod, cut: number, layers = new Float32Array(LAYERS)): Promise<number[]> => {
    const scores: Scores = new Map([["layers", layers]]);
    return layerOrder({ backend, weights, scores, validation }, cut, { ...measuring, method });
  };

  /** The loss of a model that is cut for real, and measured like any other. */
  async function lossOfCut(removed: readonly number[]): Promise<number> {
    const kept = Array.from({ length: LAYERS }, (_, i) => i).filter((layer) => !removed.includes(layer));
    const plan = planWithLayers(teacher.model, {}, kept);
    const { model, source } = prune(teacher, plan, keptIndices(teacher.model, plan, new Map()));
    const smaller = loadWeights(backend, model, source, { dtype: "f32", trainable: false });
    try {
      return (await perplexity(backend, smaller, validation, measuring)).loss;
    } finally {
      smaller.free();
    }
  }

  it("by block influence is that of the scores, and of the layers where they are equal", async () => {
    expect(await order("block-influence", 1, Float32Array.of(0.3, 0.1, 0.2, 0.1))).toEqual([1, 3, 2, 0]);
  });

  it("of a run is of those that leave a model that will do, and of all where none does", async () => {
    const scores: Scores = new Map([["layers", new Float32Array(LAYERS)]]);
    const runOf = async (isPossible: IsPossible) => {
      const options = { ...measuring, method: "contiguous-loss" as const, isPossible };
      return (await layerOrder({ backend, weights, scores, validation }, 2, options)).slice(0, 2);
    };
    for (let first = 0; first + 2 <= LAYERS; first++) {
      const run = [first, first + 1];
      expect(await runOf(({ keptLayers }) => !keptLayers.some((layer) => run.includes(layer)))).toEqual(run);
    }
    expect(await runOf(() => false)).toEqual((await order("contiguous-loss", 2)).slice(0, 2));
  });

  it("by loss is that of what the model loses without each", async () => {
    const losses: number[] = [];
    for (let layer = 0; layer < LAYERS; layer++) losses.push(await lossOfCut([layer]));
    const sorted = [...losses.keys()].sort((a, b) => losses[a]! - losses[b]!);
    expect(await order("loss", 2)).toEqual(sorted);
  });

  it.each([1, 2, LAYERS - 1])("of a run of %i begins with the run that costs least", async (cut) => {
    const runs = Array.from({ length: LAYERS - cut + 1 }, (_, first) =>
      Array.from({ length: cut }, (_, i) => first + i),
    );
    const losses: number[] = [];
    for (const run of runs) losses.push(await lossOfCut(run));
    const best = runs[losses.indexOf(Math.min(...losses))]!;
    const found = await order("contiguous-loss", cut);
    expect(found.slice(0, cut)).toEqual(best);
    expect([...found].sort()).toEqual([...Array(LAYERS).keys()]);
  });

  it("is that of the layers where none is to go", async () => {
    expect(await order("loss", 0)).toEqual([...Array(LAYERS).keys()]);
  });
});
