import path from "node:path";
import { describe, expect, it } from "vitest";
import { measureThisMachine } from "../../src/devices/index.js";
import { planForDevice } from "../../src/index.js";

const teacher = path.resolve(import.meta.dirname, "../../examples/tiny-teacher");

describe("this machine", () => {
  it("is measured: how fast weights of each type are read and multiplied, and what a step costs besides", async () => {
    const { id, usableBytes, bandwidth, compute, measured } = await measureThisMachine({ device: "cpu", threads: 1 });
    expect(id).toBe("this-machine");
    expect(Object.keys(measured?.computeOf ?? {})).toEqual(expect.arrayContaining(["f16", "q8_0", "q4_k", "q2_k"]));
    const rates = Object.values(measured?.computeOf ?? {});
    for (const value of [usableBytes, bandwidth, compute, ...rates, measured?.attentionCompute, measured?.startSeconds])
      expect(value).toBeGreaterThan(0);
    expect(measured?.rowSeconds).toBeGreaterThanOrEqual(0);
    expect(compute).toBe(measured?.computeOf.q4_k);
  });

  it("can be planned for", async () => {
    const { parameters, best } = await planForDevice({ model: teacher, forDevice: "this-machine", threads: 1 });
    expect(parameters).toBe(853_120);
    expect(best?.memory.totalBytes).toBeGreaterThan(0);
    expect(best?.tokensPerSecond).toBeGreaterThan(0);
  });
});
