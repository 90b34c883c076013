import { cpSync, mkdirSync, readFileSync, writeFileSync } from "node:fs";
import path from "node:path";
import { describe, expect, it } from "vitest";
import { agreeingTokens, Tokenizer } from "../../src/data/index.js";
import { modelFromConfig, openCheckpoint } from "../../src/models/index.js";
import { exportGguf } from "../../src/quantize/index.js";
import { hasSharedData, stories260K } from "../shared-data.js";
import { temporaryDirectory } from "../temporary.js";

interface Definition {
  normalizer: unknown;
  added_tokens: { id: number; content: string }[];
  model: { vocab: Record<string, number>; merges: (string | [string, string])[] };
}

const teacher = path.resolve(import.meta.dirname, "../../examples/tiny-teacher");
const root = temporaryDirectory();
const original = JSON.parse(readFileSync(path.join(teacher, "tokenizer.json"), "utf8")) as Definition;
const { vocabSize } = await Tokenizer.load(teacher);

/** The teacher's tokenizer with a change. */
function changed(name: string, change: (definition: Definition) => void) {
  const directory = path.join(root, name);
  mkdirSync(directory);
  const definition = structuredClone(original);
  change(definition);
  writeFileSync(path.join(directory, "tokenizer.json"), JSON.stringify(definition));
  return directory;
}
const compared = (directory: string, sizes = [vocabSize, vocabSize]) =>
  agreeingTokens(
    { name: "the teacher", directory: teacher, vocabSize: sizes[0] ?? 0 },
    { name: "the student", directory, vocabSize: sizes[1] ?? 0 },
  );

describe("two tokenizers", () => {
  it("agree with themselves, and about merges written in the other way", async () => {
    expect(await compared(teacher)).toEqual({ tokens: vocabSize, notes: [] });
    const other = changed("merges", ({ model }) => {
      model.merges = model.merges.map((pair) =>
        typeof pair === "string" ? (pair.split(" ") as [string, string]) : pair.join(" "),
      );
    });
    expect(await compared(other)).toEqual({ tokens: vocabSize, notes: [] });
  });

  it("agree where one model has more padding, and say so", async () => {
    const { tokens, notes } = await compared(teacher, [vocabSize + 100, vocabSize + 4]);
    expect(tokens).toBe(vocabSize);
    expect(notes).toEqual([expect.stringMatching(new RegExp(`${vocabSize} tokens.*${vocabSize + 100}.*padding`))]);
  });

  it("of the same size with two tokens exchanged are refused, with the first", async () => {
    const [a, b] = [300, 301].map(
      (id) => Object.entries(original.model.vocab).find(([, other]) => other === id)?.[0] ?? "",
    );
    const swapped = changed("swapped", ({ model }) => Object.assign(model.vocab, { [a ?? ""]: 301, [b ?? ""]: 300 }));
    await expect(compared(swapped)).rejects.toThrow(
      `token 300 is ${JSON.stringify(a)} in the teacher and ${JSON.stringify(b)} in the student`,
    );
  });

  it("of which one has a token more are refused", async () => {
    const longer = changed("longer", ({ added_tokens }) => {
      const token = { ...added_tokens[0], id: vocabSize, content: "<|more|>" };
      added_tokens.push(token);
    });
    await expect(compared(longer)).rejects.toThrow(`token ${vocabSize} is missing in the teacher and "<|more|>"`);
  });

  it("with the same tokens that cut text in other ways are refused, with a text", async () => {
    const backwards = changed("backwards", ({ model }) => model.merges.reverse());
    await expect(compared(backwards)).rejects.toThrow(/split text into them differently: ".*from position \d+ on/);
    const lower = changed("lower", (definition) => {
      definition.normalizer = { type: "Lowercase" };
    });
    await expect(compared(lower)).rejects.toThrow(/"Hello, world!/);
  });

  it("that are written otherwise and do the same agree, with a note", async () => {
    const spelt = changed("spelt", (definition) => {
      definition.normalizer = { type: "Sequence", normalizers: [] };
    });
    expect((await compared(spelt)).notes).toEqual([expect.stringMatching(/defined differently/)]);
  });

  it.each([
    ["byte-level", teacher],
    ["SentencePiece", stories260K],
  ])("agree between a directory and the GGUF file made of it: %s", async (name, directory) => {
    if (directory === stories260K && !hasSharedData) return;
    const file = path.join(root, `${name}.gguf`);
    const checkpoint = openCheckpoint(directory);
    await exportGguf(file, checkpoint, { kind: "f16" });
    const written = openCheckpoint(file);
    const size = modelFromConfig(checkpoint.config).vocabSize;
    const sides = [checkpoint, written].map(({ directory: at }, i) => ({
      name: `${i}`,
      directory: at,
      vocabSize: size,
    }));
    expect((await agreeingTokens(sides[0]!, sides[1]!)).tokens).toBe(size);
  });

  it("are taken to agree where one is not there, if the sizes do", async () => {
    const bare = path.join(root, "bare");
    mkdirSync(bare);
    cpSync(path.join(teacher, "config.json"), path.join(bare, "config.json"));
    expect((await compared(bare)).notes).toEqual([expect.stringMatching(/assumed to share a vocabulary/)]);
    await expect(compared(bare, [vocabSize, vocabSize + 1])).rejects.toThrow(/no tokenizer\.json to compare/);
  });
});
