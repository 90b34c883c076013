import path from "node:path";
import { describe, expect, it } from "vitest";
import { exportGguf, parseFileKind } from "../../src/quantize/index.js";
import { randomModel } from "../random-model.js";
import { temporaryDirectory } from "../temporary.js";
import { expectLlamaCppsBits } from "./quantizer.js";

const root = temporaryDirectory();

// of each family of types one, mixtures among them; every-kind.test.ts has the others, some of whose tables take seconds
expectLlamaCppsBits(["bf16", "q4_0", "q4_k_m", "q2_k", "tq1_0"]);

describe("kinds of files", () => {
  it("are recognized in either case, and listed for an unknown name", () => {
    expect(parseFileKind("Q4_K_M")).toBe("q4_k_m");
    expect(() => parseFileKind("q9")).toThrow(/q4_k_m/);
  });

  it("that need importances ask for data", async () => {
    const { checkpoint } = randomModel(root, "plain", { num_hidden_layers: 1 });
    await expect(exportGguf(path.join(root, "refused.gguf"), checkpoint, { kind: "iq2_xs" })).rejects.toThrow(/--data/);
  });

  it("of weights that are not finite are refused", async () => {
    const { checkpoint } = randomModel(root, "broken", { num_hidden_layers: 1 });
    checkpoint.source.tensors.get("model.layers.0.mlp.up_proj.weight")!.data[1000] = Number.NaN;
    await expect(exportGguf(path.join(root, "refused.gguf"), checkpoint, { kind: "q4_k_m" })).rejects.toThrow(
      /ffn_up.*holds NaN or infi/,
    );
  });
});
