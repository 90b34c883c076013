import { mkdirSync, writeFileSync } from "node:fs";
import path from "node:path";
import { describe, expect, it } from "vitest";
import { licenceOf } from "../../src/foundry/materials.js";
import { resolveTarget } from "../../src/foundry/target.js";
import { temporaryDirectory } from "../temporary.js";

const root = temporaryDirectory();
let count = 0;
const withFiles = (files: Readonly<Record<string, string>>): string => {
  const directory = path.join(root, `model-${count++}`);
  mkdirSync(directory);
  for (const [name, content] of Object.entries(files)) writeFileSync(path.join(directory, name), content);
  return directory;
};

describe("a model's licence", () => {
  it("is that of its card's header, or the first line of its licence file", () => {
    const header = (...lines: string[]) => ({ "README.md": ["---", ...lines, "---", "license: no"].join("\n") });
    expect(licenceOf(withFiles(header("language: en", 'license: "apache-2.0"', "x: y")))).toBe("apache-2.0");
    expect(licenceOf(withFiles(header("license: mit\r")))).toBe("mit");
    expect(licenceOf(withFiles({ ...header("language: en"), LICENSE: "\n  Some Licence\nmore" }))).toBe("Some Licence");
    expect(licenceOf(withFiles({ "README.md": "license: mit" }))).toBeNull();
  });

  it.each([
    ["blanks", `---\nlicense:${" ".repeat(1 << 20)}!`],
    ["headers that never end", `---\n${"license: x\n".repeat(90_000)}`],
  ])("is not looked for for ever in %s", (_, card) => {
    expect(licenceOf(withFiles({ "README.md": card }))).toBeNull();
  });
});

it("a job for a device cuts to what fits in the kinds of files that it asks for", async () => {
  const config = {
    model_type: "llama",
    vocab_size: 32_000,
    hidden_size: 2048,
    intermediate_size: 8192,
    num_hidden_layers: 16,
    num_attention_heads: 32,
    num_key_value_heads: 8,
    max_position_embeddings: 4096,
  };
  const spec = { device: "phone-4gb" } as Parameters<typeof resolveTarget>[0];
  expect((await resolveTarget(spec, config)).target).toBeUndefined(); // in few bits the whole model fits
  const exact = await resolveTarget({ ...spec, quantization: ["f16"] }, config);
  expect(exact.kinds).toEqual(["f16"]);
  expect(exact.target).toMatch(/=/);
});
