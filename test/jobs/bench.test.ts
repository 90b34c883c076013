import { describe, expect, it } from "vitest";
import { BENCH_WORK, bench } from "../../src/index.js";
import { coppice } from "../cli/command-line.js";

const [hidden, ffn, layers, vocab] = [32, 64, 2, 96];
const model = `hidden=${hidden},ffn=${ffn},layers=${layers},heads=2,kvHeads=1,vocab=${vocab}`;
const job = { model, device: "cpu", sequenceLength: 16, batchSize: 2, steps: 2, computeType: "f32" } as const;

describe("a bench", () => {
  /** Operations a token, by work. */
  const operations = new Map<string, number>();

  it.each(BENCH_WORK)("times %s, and relates it to what the model needs and the device can", async (work) => {
    const done: number[] = [];
    const outcome = await bench({ ...job, work, onProgress: (event) => done.push(event.done) });
    operations.set(work, outcome.modelFlops / outcome.tokensPerSecond);
    expect(outcome).toMatchObject({ work, threads: 1, sequenceLength: 16, batchSize: 2, computeType: "f32" });
    expect(done).toEqual([1, 2]);
    expect(outcome.seconds).toHaveLength(2);
    expect(outcome.medianSeconds).toBeCloseTo((outcome.seconds[0]! + outcome.seconds[1]!) / 2, 12);
    const batches = (outcome.tokensPerSecond * outcome.medianSeconds) / (16 * 2);
    expect(batches).toBeGreaterThan(0.9);
    expect(batches).toBeCloseTo(Math.round(batches), 9);
    expect(outcome.share).toBeCloseTo(outcome.modelFlops / outcome.peakFlops, 12);
    expect(outcome.share).toBeGreaterThan(0);
    expect(outcome.memoryBytes).toBeGreaterThan(1e6);
    expect(outcome.profile).toBeUndefined();
    // one embedding, which is the head too; attention with one of two key-value heads; the gated layer; two gains a layer and the last
    const perLayer = 2 * hidden * hidden + hidden * hidden + 3 * hidden * ffn + 2 * hidden;
    expect(outcome.parameters).toBe(vocab * hidden + layers * perLayer + hidden);
  });

  it("counts three forward passes for a step of training, and one more for a teacher's", () => {
    const [distill = 0, train] = [operations.get("distill"), operations.get("train")];
    expect(distill / (train ?? 0)).toBeCloseTo(4 / 3, 9);
  });

  it("tells where the time goes when asked", async () => {
    const flags = ["--sequence-length", "16", "--batch-size", "2", "--steps", "1", "--device", "cpu", "--profile"];
    const { status, stdout } = await coppice("bench", model, ...flags);
    expect(status).toBe(0);
    expect(stdout).toMatch(/distill, .* parameters, 2 x 16 tokens, bf16/);
    const times = [...stdout.matchAll(/│ \w+ +│ +[\d.]+ │ +([\d.]+) % │/g)].map(([, share]) => Number(share));
    expect(times.length).toBeGreaterThan(3);
    expect(times.reduce((sum, share) => sum + share, 0)).toBeGreaterThan(90); // of all but what takes next to nothing
  });

  it("refuses sizes that it does not understand", async () => {
    await expect(bench({ ...job, model: "hidden=32,layers=many" })).rejects.toThrow(
      /"layers=many" is not understood; sizes are hidden, ffn/,
    );
  });
});
