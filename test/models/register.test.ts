import { afterAll, describe, expect, it } from "vitest";
import { ARCHITECTURES, modelFromConfig, registerArchitecture } from "../../src/models/index.js";
import { UsageError } from "../../src/system/errors.js";

const llama = ARCHITECTURES.find(({ name }) => name === "llama");
if (llama === undefined) throw new Error("there is no llama");
const own = { ...llama, name: "own", modelTypes: ["own"], gguf: { ...llama.gguf, architectures: ["own"] } };
afterAll(() => void (ARCHITECTURES as unknown[]).splice(ARCHITECTURES.indexOf(own), 1)); // other files share the process

describe("an architecture of one's own", () => {
  it("is refused where another has its name, model type or GGUF architecture", () => {
    expect(() => registerArchitecture({ ...own, name: "llama" })).toThrow(UsageError);
    expect(() => registerArchitecture({ ...own, modelTypes: ["mine", "qwen3"] })).toThrow("qwen3 already has qwen3");
    expect(() => registerArchitecture({ ...own, gguf: llama.gguf })).toThrow("llama already has llama");
    expect(ARCHITECTURES.map(({ name }) => name)).not.toContain("own");
  });

  it("opens its configurations once it is registered, and once only", () => {
    const config = { model_type: "own", vocab_size: 32, hidden_size: 8, intermediate_size: 16 };
    const whole = { ...config, num_hidden_layers: 1, num_attention_heads: 2 };
    expect(() => modelFromConfig(whole)).toThrow('model_type "own" is not supported');
    registerArchitecture(own);
    expect(modelFromConfig(whole)).toMatchObject({ architecture: "own", layerCount: 1 });
    expect(() => registerArchitecture(own)).toThrow(UsageError);
  });
});
