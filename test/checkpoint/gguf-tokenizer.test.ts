import { mkdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import path from "node:path";
import fc from "fast-check";
import { Tokenizer as NativeTokenizer } from "tokenizers";
import { beforeAll, describe, expect, it } from "vitest";
import { gguf, openGguf } from "../../src/checkpoint/gguf.js";
import { readJsonObject } from "../../src/checkpoint/json.js";
import { PRE_TOKENIZERS } from "../../src/checkpoint/pre-tokenizers.js";
import { tokenizerFiles } from "../../src/checkpoint/tokenizer-from-gguf.js";
import { Tokenizer } from "../../src/data/index.js";
import { type Checkpoint, modelFromConfig, openCheckpoint, shapeOf } from "../../src/models/index.js";
import { exportGguf } from "../../src/quantize/index.js";
import { loadInLlamaCpp } from "../llama-cpp.js";
import { hasSharedData, stories260K } from "../shared-data.js";
import { temporaryDirectory } from "../temporary.js";

const root = temporaryDirectory();

const SAMPLES = [
  "Once upon a time, there was a little girl named Lily. She didn't like it; we'll see, I'VE TOLD'em!",
  "def f(x):\n    return x ** 2  # square\n\n\nif __name__ == '__main__':\n\tprint(f(12345678))\r\n",
  "const a = {b: [1, 2.5e-3], c: `$d`}; // ok?? -> !== ...",
  "Привет, как дела? Это тест. ЗДРАВСТВУЙТЕ ПриВет élanÉlan camelCaseWord HTTPServer",
  "我想在apple工作1314151天～ 日本語のテキスト、カタカナ。한국어 문장입니다.",
  "مرحبا بالعالم كيف حالك ١٢٣ שלום עולם नमस्ते दुनिया १२३ สวัสดีชาวโลก",
  "🚀 (normal) 😶‍🌫️ (multiple emojis concatenated) ✅ 🦙🦙 👩‍👩‍👧‍👦 🇩🇪",
  "\n \n\n \n\n\n \t \t\t \t\n  \n   \n    \n     \n3 33 333 3333 33333 333333 3.3 3..3 ------======= '''''' ``````",
  "Ünïcödé ﬁﬂ ½ ² Ⅷ ℌ e\u0301 a\u0308 \u00a0nbsp\u2003em\u200bzero \ufeffbom ǅ İ ß ẞ",
  "<s> </s> <unk> <|begin|> <0x0A> ▁ ▁▁ Ġ Ċ",
];

const text = fc.oneof(
  fc.constantFrom(...SAMPLES),
  fc
    .array(fc.constantFrom(...SAMPLES.flatMap((sample) => sample.match(/\s+|[^\s]+/gu) ?? [])), { maxLength: 12 })
    .map((parts) => parts.join("")),
  fc
    .array(fc.constantFrom(...SAMPLES.flatMap((sample) => [...sample])), { maxLength: 30 })
    .map((parts) => parts.join("")),
  fc.string({ unit: "binary", maxLength: 20 }), // any code points, whole
  fc.string({ unit: fc.nat(0xffff).map((code) => String.fromCharCode(code)), maxLength: 20 }), // and halves of them
  fc.uint8Array({ maxLength: 20 }).map((bytes) => Buffer.from(bytes).toString("utf8")), // what bytes that are no UTF-8 become
  fc.string({ unit: "grapheme", maxLength: 20 }),
  fc.stringMatching(/^[ \t\r\n'a-cA-C0-9./]{0,20}$/),
);

/** Without what llama.cpp takes for the markers of its own format or cannot be given. */
const usable = (value: string): boolean => !value.includes("\0") && !value.includes("▁");

function modelWith(directory: string, vocabSize: number): Checkpoint {
  const config = {
    model_type: "llama",
    vocab_size: vocabSize,
    hidden_size: 32,
    intermediate_size: 32,
    num_hidden_layers: 1,
    num_attention_heads: 4,
    num_key_value_heads: 4,
    tie_word_embeddings: true,
    max_position_embeddings: 256,
  };
  const model = modelFromConfig(config);
  const tensors = new Map(
    model.parameters.map((spec) => [spec.name, { dtype: "f32" as const, shape: shapeOf(spec, model.sizes) }]),
  );
  const source = {
    tensors,
    readRows: (name: string, from: number, to: number) =>
      new Uint8Array(
        (to - from) *
          4 *
          tensors
            .get(name)!
            .shape.slice(1)
            .reduce((a, b) => a * b, 1),
      ),
    releaseRows: () => {},
  };
  return { path: directory, directory, config, model, source, bytes: 0, files: [], notes: [] };
}

const byteCharacters = Array.from(
  { length: 256 },
  (() => {
    let next = 256;
    return (_: unknown, byte: number) =>
      String.fromCodePoint((byte >= 33 && byte <= 126) || (byte >= 161 && byte <= 172) || byte >= 174 ? byte : next++);
  })(),
);

/** Merges learnt without regard to words, so that where a text is cut shows in the tokens. */
function greedyMerges(count: number): [string, string][] {
  const lines = SAMPLES.map((sample) => [...Buffer.from(sample)].map((byte) => byteCharacters[byte]!));
  const merges: [string, string][] = [];
  while (merges.length < count) {
    const pairs = new Map<string, number>();
    for (const line of lines)
      for (let i = 0; i + 1 < line.length; i++)
        pairs.set(`${line[i]} ${line[i + 1]}`, (pairs.get(`${line[i]} ${line[i + 1]}`) ?? 0) + 1);
    const [best] = [...pairs].sort((a, b) => b[1] - a[1] || (a[0] < b[0] ? -1 : 1));
    const [left, right] = best![0].split(" ") as [string, string];
    merges.push([left, right]);
    for (const line of lines)
      for (let i = 0; i + 1 < line.length; i++)
        if (line[i] === left && line[i + 1] === right) line.splice(i, 2, left + right);
  }
  return merges;
}

/** A byte-level tokenizer that cuts texts into words in one of the known ways. */
function byteLevelDirectory({ name, steps, ignoreMerges }: (typeof PRE_TOKENIZERS)[number]): string {
  const directory = path.join(root, name);
  const merges = greedyMerges(200);
  const tokens = [...new Set([...byteCharacters, ...merges.map((pair) => pair.join(""))])];
  const special = ["<|begin|>", "<|end|>"];
  const added = { single_word: false, lstrip: false, rstrip: false, normalized: false, special: true };
  const bytes = (use_regex: boolean) => ({ type: "ByteLevel", add_prefix_space: false, trim_offsets: true, use_regex });
  const pretokenizers = steps.map((step) => {
    if (step === "gpt2") return bytes(true);
    if (step === "digits") return { type: "Digits", individual_digits: true };
    return { type: "Split", pattern: { Regex: step.split }, behavior: "Isolated", invert: false };
  });
  if (!steps.includes("gpt2")) pretokenizers.push(bytes(false));
  mkdirSync(directory, { recursive: true });
  writeFileSync(
    path.join(directory, "tokenizer.json"),
    JSON.stringify({
      version: "1.0",
      truncation: null,
      padding: null,
      normalizer: null,
      post_processor: null,
      added_tokens: special.map((content, i) => ({ id: tokens.length + i, content, ...added })),
      pre_tokenizer: { type: "Sequence", pretokenizers },
      decoder: bytes(true),
      model: {
        type: "BPE",
        dropout: null,
        unk_token: null,
        byte_fallback: false,
        ignore_merges: ignoreMerges ?? true,
        vocab: Object.fromEntries(tokens.map((token, id) => [token, id])),
        merges,
      },
    }),
  );
  writeFileSync(
    path.join(directory, "tokenizer_config.json"),
    JSON.stringify({ bos_token: special[0], eos_token: special[1], chat_template: "{{ messages[0].content }}" }),
  );
  return directory;
}

const cases: { readonly name: string; readonly make: () => string; readonly differing?: RegExp | undefined }[] = [
  ...PRE_TOKENIZERS.map((way) => ({
    name: `byte-level tokens, words as in ${way.name}`,
    make: () => byteLevelDirectory(way),
    differing: way.differsOn?.pattern,
  })),
  { name: "the demo's teacher", make: () => path.resolve(import.meta.dirname, "../../examples/tiny-teacher") },
  ...(hasSharedData ? [{ name: "stories260K (SentencePiece)", make: () => stories260K }] : []),
];

describe.each(cases)("$name", ({ make, differing }) => {
  const comparable = (value: string) => usable(value) && !(differing?.test(value) ?? false);
  let ours: NativeTokenizer;
  let back: NativeTokenizer;
  let file: string;
  let directory: string;
  beforeAll(async () => {
    directory = make();
    ours = NativeTokenizer.fromString(readFileSync(path.join(directory, "tokenizer.json"), "utf8"));
    const vocabSize = Math.max(...Object.values(ours.getVocab(true))) + 1;
    file = path.join(root, `${path.basename(directory)}.gguf`);
    await exportGguf(file, modelWith(directory, vocabSize), { kind: "f32" });
    const files = tokenizerFiles(file, openGguf(file).metadata);
    back = NativeTokenizer.fromString(JSON.stringify(files["tokenizer.json"]));
  });
  const idsOf = async (tokenizer: NativeTokenizer, value: string) =>
    (await tokenizer.encode(value, null, { addSpecialTokens: false })).getIds();

  it("gives the same tokens in llama.cpp", async () => {
    const model = await loadInLlamaCpp(file);
    try {
      await fc.assert(
        fc.asyncProperty(text.filter(comparable), async (value) => {
          expect([...model.tokenize(value, true)], JSON.stringify(value)).toEqual(await idsOf(ours, value));
        }),
        { numRuns: 250, examples: SAMPLES.filter(comparable).map((sample) => [sample]) },
      );
    } finally {
      await model.dispose();
    }
  });

  it("comes back from the file as the same tokenizer", async () => {
    await fc.assert(
      fc.asyncProperty(text, async (value) => {
        const ids = await idsOf(ours, value);
        expect(await idsOf(back, value)).toEqual(ids);
        expect(await back.decode(ids, false)).toBe(await ours.decode(ids, false));
      }),
      { numRuns: 200, examples: SAMPLES.map((sample) => [sample]) },
    );
    const special = async (tokenizer: NativeTokenizer) =>
      (await tokenizer.encode("a b", null, { addSpecialTokens: true })).getIds();
    expect(await special(back)).toEqual(await special(ours));
    expect(openCheckpoint(file).directory).not.toBe(directory);
    const before = path.join(directory, "tokenizer_config.json");
    const after = path.join(openCheckpoint(file).directory, "tokenizer_config.json");
    for (const key of ["bos_token", "eos_token", "chat_template"])
      expect(readJsonObject(after)[key]).toEqual(readJsonObject(before)[key]);
  });
});

it("begins texts with a token by its pre-tokenizer where the file does not say whether", async () => {
  for (const [name, begins] of [
    ["llama-bpe", true],
    ["tekken", true],
    ["qwen2", false],
    ["gpt-2", false],
  ] as const) {
    const directory = byteLevelDirectory(PRE_TOKENIZERS.find((way) => way.name === name)!);
    const file = path.join(root, `${name}-unsaid.gguf`);
    await exportGguf(file, modelWith(directory, 1000), { kind: "f32" });
    const { metadata } = openGguf(file);
    const unsaid = new Map([...metadata, ["tokenizer.ggml.bos_token_id", gguf.uint32(1)] as const]);
    unsaid.delete("tokenizer.ggml.add_bos_token");
    const made = NativeTokenizer.fromString(JSON.stringify(tokenizerFiles(file, unsaid)["tokenizer.json"]));
    const ids = async (special: boolean) => (await made.encode("a b", null, { addSpecialTokens: special })).getIds();
    expect(await ids(true), name).toEqual([...(begins ? [1] : []), ...(await ids(false))]);
  }
});

it("ends answers at the end of a turn, too, where the model does", async () => {
  const directory = byteLevelDirectory(PRE_TOKENIZERS[0]!);
  const end = (await Tokenizer.load(directory)).eos?.id;
  writeFileSync(path.join(directory, "generation_config.json"), JSON.stringify({ eos_token_id: [end, 5, 6] }));
  const file = path.join(root, "turns.gguf");
  await exportGguf(file, modelWith(directory, 1000), { kind: "f32" });
  const ends = [...(await Tokenizer.load(openCheckpoint(file).directory)).ends];
  expect(ends).toEqual([end, 5, 6]);
});

it("leaves out a token for padding that was added without a row of the embedding", async () => {
  const directory = byteLevelDirectory(PRE_TOKENIZERS[0]!);
  const change = (name: string, edit: (json: Record<string, unknown>) => void) => {
    const file = path.join(directory, name);
    const json = JSON.parse(readFileSync(file, "utf8")) as Record<string, unknown>;
    edit(json);
    writeFileSync(file, JSON.stringify(json));
  };
  change("tokenizer.json", (json) => {
    const added = json.added_tokens as object[];
    added.push({ ...added[0], content: "[PAD]", id: 1000 });
  });
  change("tokenizer_config.json", (json) => {
    json.pad_token = "[PAD]";
  });
  const file = path.join(root, "padding.gguf");
  const { notes } = await exportGguf(file, modelWith(directory, 1000), { kind: "f32" });
  expect(openGguf(file).metadata.has("tokenizer.ggml.padding_token_id")).toBe(false);
  expect(notes.join()).toMatch(/\[PAD\]/);
});

it("ends answers at the end of a turn where a file does not say which token that is, but its name does", async () => {
  const directory = byteLevelDirectory(PRE_TOKENIZERS[0]!);
  rmSync(path.join(directory, "generation_config.json"), { force: true }); // another test's
  const definition = path.join(directory, "tokenizer.json");
  const json = JSON.parse(readFileSync(definition, "utf8")) as {
    added_tokens: { id: number; content: string; special: boolean }[];
  };
  const [, end] = json.added_tokens;
  const next = Math.max(...json.added_tokens.map(({ id }) => id)) + 1;
  const add = (content: string, id: number, special: boolean) =>
    json.added_tokens.push({ ...json.added_tokens[0]!, content, id, special });
  add("<end_of_turn>", next, true);
  add("<|im_end|>", next + 1, false); // stated as a text like any other, as in many files
  writeFileSync(definition, JSON.stringify(json));
  const file = path.join(root, "silent.gguf");
  await exportGguf(file, modelWith(directory, 1000), { kind: "f32" });
  const { metadata } = openGguf(file);
  expect(metadata.has("tokenizer.ggml.eot_token_id")).toBe(false);
  const stops = (chat: boolean) => {
    const kept = new Map([...metadata].filter(([key]) => chat || key !== "tokenizer.chat_template"));
    return tokenizerFiles(file, kept)["generation_config.json"]?.eos_token_id;
  };
  expect(stops(true)).toEqual([end!.id, next + 1, next]);
  expect(stops(false)).toEqual(end!.id); // no chat model
});

it("that puts two tokens before a text, or should put one there, is written with a note", async () => {
  const notesOf = async (change: (directory: string) => void) => {
    const directory = byteLevelDirectory(PRE_TOKENIZERS[0]!);
    change(directory);
    return (await exportGguf(path.join(root, "noted.gguf"), modelWith(directory, 1000), { kind: "f32" })).notes.join();
  };
  const edited = (directory: string, name: string, change: (json: Record<string, unknown>) => void) => {
    const file = path.join(directory, name);
    const json = JSON.parse(readFileSync(file, "utf8")) as Record<string, unknown>;
    change(json);
    writeFileSync(file, JSON.stringify(json));
  };
  const begin = (id: string) => ({ SpecialToken: { id, type_id: 0 } });
  const template = (...ids: string[]) => ({
    type: "TemplateProcessing",
    single: [...ids.map(begin), { Sequence: { id: "A", type_id: 0 } }],
    pair: [],
    special_tokens: {},
  });
  const first = (json: Record<string, unknown>) => (json.added_tokens as { content: string }[])[0]!.content;
  expect(await notesOf(() => {})).not.toMatch(/begin/);
  expect(
    await notesOf((directory) =>
      edited(directory, "tokenizer.json", (json) => (json.post_processor = template(first(json), first(json)))),
    ),
  ).toMatch(/puts only the first there/);
  expect(
    await notesOf((directory) => edited(directory, "tokenizer_config.json", (json) => (json.add_bos_token = true))),
  ).toMatch(/asks for a begin token that tokenizer.json does not add/);
});

describe("a tokenizer that llama.cpp does not have", () => {
  const exported = (change: (definition: Record<string, unknown>) => void) => {
    const directory = byteLevelDirectory(PRE_TOKENIZERS[0]!);
    const file = path.join(directory, "tokenizer.json");
    const definition = JSON.parse(readFileSync(file, "utf8")) as Record<string, unknown>;
    change(definition);
    writeFileSync(file, JSON.stringify(definition));
    return exportGguf(path.join(root, "refused.gguf"), modelWith(directory, 1000), { kind: "f32" });
  };

  it("is refused, with the way out", async () => {
    await expect(exported((d) => (d.pre_tokenizer = { type: "Whitespace" }))).rejects.toThrow(/--pre-tokenizer/);
    await expect(exported((d) => ((d.model as Record<string, unknown>).type = "WordPiece"))).rejects.toThrow(
      /WordPiece/,
    );
  });

  it("with a normalizer is written with a note", async () => {
    const { notes } = await exported((d) => (d.normalizer = { type: "NFC" }));
    expect(notes.join()).toMatch(/NFC/);
  });
});

it("that puts a token after each text keeps it, as the end token: llama.cpp puts no other there", async () => {
  const directory = byteLevelDirectory(PRE_TOKENIZERS[0]!);
  rmSync(path.join(directory, "generation_config.json"), { force: true }); // another test's
  const definition = path.join(directory, "tokenizer.json");
  const json = JSON.parse(readFileSync(definition, "utf8")) as { added_tokens: { id: number }[] };
  const end = json.added_tokens[1]!.id;
  const last = { ...json.added_tokens[1]!, id: end + 1, content: "<|endoftext|>" };
  const place = { id: last.content, type_id: 0 };
  writeFileSync(
    definition,
    JSON.stringify({
      ...json,
      added_tokens: [...json.added_tokens, last],
      post_processor: {
        type: "TemplateProcessing",
        single: [{ Sequence: { id: "A", type_id: 0 } }, { SpecialToken: place }],
        pair: [{ Sequence: { id: "A", type_id: 0 } }, { SpecialToken: place }, { Sequence: { id: "B", type_id: 0 } }],
        special_tokens: { [place.id]: { id: place.id, ids: [last.id], tokens: [place.id] } },
      },
    }),
  );
  const file = path.join(root, "ending.gguf");
  await exportGguf(file, modelWith(directory, 1000), { kind: "f32" });
  const { metadata } = openGguf(file);
  const numbers = ["eos_token_id", "eot_token_id", "add_eos_token"].map(
    (key) => metadata.get(`tokenizer.ggml.${key}`)?.value,
  );
  expect(numbers).toEqual([last.id, end, true]);
  const files = tokenizerFiles(file, metadata);
  const back = NativeTokenizer.fromString(JSON.stringify(files["tokenizer.json"]));
  const ids = async (special: boolean) => (await back.encode("a b", null, { addSpecialTokens: special })).getIds();
  expect(await ids(true)).toEqual([...(await ids(false)), last.id]);
  expect(files["generation_config.json"]?.eos_token_id).toEqual([last.id, end]);
});
