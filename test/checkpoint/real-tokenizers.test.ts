import { copyFileSync, mkdirSync, readFileSync } from "node:fs";
import { createRequire } from "node:module";
import path from "node:path";
import { TokenizerLoader } from "@lenml/tokenizers";
import fc from "fast-check";
import { Tokenizer as NativeTokenizer } from "tokenizers";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { openGguf } from "../../src/checkpoint/index.js";
import { tokenizerFiles } from "../../src/checkpoint/tokenizer-from-gguf.js";
import { Tokenizer } from "../../src/data/tokenizer.js";
import { startLlama } from "../../src/generate/start-llama.js";
import { type Checkpoint, modelFromConfig, shapeOf } from "../../src/models/index.js";
import { exportGguf } from "../../src/quantize/index.js";
import { temporaryDirectory } from "../temporary.js";

const root = temporaryDirectory();

const TEXTS = [
  "",
  "a",
  "The naïve café owner's résumé: São Paulo, Łódź, Kraków, İstanbul, Ångström.",
  "Zwölf Boxkämpfer jagen Viktor quer über den großen Sylter Deich – „Straße“!",
  "Tiếng Việt có dấu: Nguyễn, đường phố",
  "Η γρήγορη αλεπού πηδάει πάνω από το σκυλί. ΚΑΛΗΜΈΡΑ Κόσμε;",
  "Съешь ещё этих мягких французских булок. ЗДРАВСТВУЙТЕ, Привет!",
  "مرحبا بالعالم، كيف حالك؟ ١٢٣٤٥",
  "שלום עולם, מה שלומך היום?",
  "नमस्ते दुनिया, आप कैसे हैं? १२३४",
  "สวัสดีชาวโลก วันนี้อากาศดีมาก",
  "我想在apple工作1314151天～，可以吗？中文分词测试。",
  "吾輩は猫である。名前はまだ無い。カタカナ、ひらがな",
  "안녕하세요 세계, 오늘은 날씨가 좋습니다.",
  "ქართული ենա հայերեն ગુજરાતી தமிழ் తెలుగు ಕನ್ನಡ മലയാളം বাংলা ਪੰਜਾਬੀ ພາສາລາວ မြန်မာ ខ្មែរ አማርኛ ᏣᎳᎩ",
  "🚀 😶‍🌫️ 👩‍👩‍👧‍👦 🇩🇪 👍🏽 ❤️ ✅🦙🦙",
  "𝒳𝔘𝕏 𐍈 𓀀 🂡 𠀀𠮷 ｆｕｌｌ　ｗｉｄｔｈ １２３",
  "1234567 12 345 6789 3.14159 1,000,000 2e10 0x1F 1️⃣",
  'def f(x):\n\treturn x ** 2  # square\n\n\nif __name__ == "__main__":\n\t\tprint(f(12345678))\r\n',
  "const a = {b: [1, 2.5e-3], c: `$d`}; // ok?? -> !== ... </div>\n\n\t}\n",
  "SELECT * FROM t WHERE a<>'b' AND c>=10;-- done",
  "camelCaseWord HTTPServer XMLHttpRequest iPhone snake_case_word kebab-case ALLCAPS",
  " leading",
  "trailing ",
  "  two  spaces   three    four  ",
  `a${" ".repeat(40)}b`,
  " ".repeat(100),
  `${"\n".repeat(35)}x`,
  `${"\t".repeat(20)}x\t\ty`,
  " \n \n\n  \n\t\n x",
  "don't I'll we've they're I'm he'd it's DON'T I'LL WE'VE ''''s 'Tis O'Neill l'été",
  "\u0001\u0002\u0007\u001b[31mred\u001b[0m\u007fend",
  "a\u00a0b\u2003c\u200bd\u3000e",
  "½ ² Ⅷ ℌ ﬁﬂ ǅ ß ẞ €100 £5 ¥ © ® ™ ° ± × ÷ ∑ ∫ ≤ ≠ → ←",
  "https://user@example.com/a/b?c=d&e=%20#f C:\\Users\\x\\y.txt ../a/b ~/c",
  '!!! ??? ... --- === ### *** ``` """ ((())) [[]] {{}}',
  "<unk> <0x0A> <|begin|> Ġ Ċ Â",
];

/** Texts that one of the others tokenizes differently, why, and an example: it differs, or the entry is out of date. */
interface KnownDifference {
  readonly of: "reference" | "llama.cpp" | "read back";
  readonly why: string;
  readonly texts: RegExp;
  readonly example: string;
}

const WHITE_SPACE: KnownDifference = {
  of: "reference",
  why: "JavaScript's \\s holds U+FEFF and not U+0085, Unicode's White_Space the other way round",
  texts: /[\ufeff\u0085]/,
  example: "a  \ufeffb",
};

const composed = (of: KnownDifference["of"]): KnownDifference => ({
  of,
  why: "GGUF cannot say that texts are composed (NFC) first, and llama.cpp does not do so",
  texts: /[\u0300-\u036f]|\p{M}/u,
  example: "e\u0301",
});

interface Case {
  readonly name: string;
  /** As in the family's models: more rows than tokens, or fewer. */
  readonly vocabSize: number;
  readonly modelType?: string;
  /** Texts of its special tokens. */
  readonly special: readonly string[];
  readonly differences: readonly KnownDifference[];
}

const CASES: readonly Case[] = [
  {
    name: "qwen3",
    vocabSize: 151_936,
    modelType: "qwen3",
    special: [
      "<|im_start|>user\nHi<|im_end|>\n<think>\n\n</think>\n\n<tool_call>{}</tool_call><|fim_prefix|>x<|endoftext|>",
    ],
    differences: [
      WHITE_SPACE,
      composed("llama.cpp"),
      composed("read back"),
      {
        of: "llama.cpp",
        why: "it takes any token whose text is </s> for an end marker, here the ordinary token of HTML's </s>",
        texts: /<\/s>/,
        example: "<s>x</s>",
      },
    ],
  },
  {
    name: "gemma3",
    vocabSize: 262_144,
    modelType: "gemma3_text",
    special: ["<bos><start_of_turn>user\nHi<end_of_turn>\n<start_of_turn>model\n", "<unused7><mask> <h1>x</h1> <pad>"],
    differences: [
      {
        of: "llama.cpp",
        why: "its tokens of several spaces are written with spaces there, so those of a text's own U+2581 are not found",
        texts: /▁/,
        example: "a ▁b",
      },
      {
        of: "read back",
        why: "as llama.cpp does",
        texts: /▁/,
        example: "a ▁b",
      },
    ],
  },
  {
    name: "llama3_1",
    vocabSize: 128_256,
    special: [
      "<|begin_of_text|><|start_header_id|>user<|end_header_id|>\n\nHi<|eot_id|>",
      "<|python_tag|>x <|eom_id|> y",
    ],
    differences: [WHITE_SPACE],
  },
  {
    name: "gptoss",
    vocabSize: 201_088,
    special: ["<|start|>assistant<|channel|>final<|message|>Hi<|return|>", "x <|end|> y <|endoftext|>"],
    differences: [
      WHITE_SPACE,
      {
        of: "llama.cpp",
        why: "its pattern knows no capitals but A to Z",
        texts: /(?![a-z][A-Z])[\p{Ll}\p{Lm}\p{Lo}\p{M}][\p{Lu}\p{Lt}]/u,
        example: "ЭтоТест",
      },
    ],
  },
  {
    name: "deepseek_v3",
    vocabSize: 129_280,
    special: [
      "<｜begin▁of▁sentence｜><｜User｜>Hi<｜Assistant｜>Ok<｜end▁of▁sentence｜>",
      "<｜tool▁calls▁begin｜><｜tool▁sep｜>x<｜tool▁calls▁end｜> <｜fim▁hole｜>",
    ],
    differences: [WHITE_SPACE],
  },
  {
    name: "gpt4o",
    vocabSize: 200_019,
    special: ["<|endoftext|>Hi<|endofprompt|> x"],
    differences: [
      WHITE_SPACE,
      {
        of: "llama.cpp",
        why: "its pattern knows no combining marks, and no capitals but A to Z",
        texts: /\p{M}|(?![a-z][A-Z])[\p{Ll}\p{Lm}\p{Lo}][\p{Lu}\p{Lt}]/u,
        example: "नमस्ते दुनिया",
      },
    ],
  },
];

const require = createRequire(import.meta.url);
const definitionOf = (name: string): string => require.resolve(`@lenml/tokenizer-${name}/models/tokenizer.json`);
const readJson = (file: string) => JSON.parse(readFileSync(file, "utf8"));

/** A model directory with the package's tokenizer, and weights that are nought. */
function modelWith({ name, vocabSize, modelType = "llama" }: Case): Checkpoint {
  const directory = path.join(root, name);
  mkdirSync(directory);
  for (const file of ["tokenizer.json", "tokenizer_config.json"])
    copyFileSync(path.join(path.dirname(definitionOf(name)), file), path.join(directory, file));
  const config = {
    model_type: modelType,
    vocab_size: vocabSize,
    hidden_size: 8,
    intermediate_size: 32,
    num_hidden_layers: 1,
    num_attention_heads: 1,
    num_key_value_heads: 1,
    head_dim: 8,
    query_pre_attn_scalar: 8,
    sliding_window: 32,
    max_position_embeddings: 256,
    rms_norm_eps: 1e-6,
    tie_word_embeddings: true,
  };
  const model = modelFromConfig(config);
  const tensors = new Map(
    model.parameters.map((spec) => [spec.name, { dtype: "f32" as const, shape: shapeOf(spec, model.sizes) }]),
  );
  const source = {
    tensors,
    readRows: (tensor: string, from: number, to: number) => {
      const [, ...inner] = tensors.get(tensor)?.shape ?? [];
      return new Uint8Array((to - from) * 4 * inner.reduce((a, b) => a * b, 1));
    },
    releaseRows: () => {},
  };
  return { path: directory, directory, config, model, source, bytes: 0, files: [], notes: [] };
}

async function vocabularyInLlamaCpp(file: string) {
  const llama = await startLlama("cpu");
  return llama.loadModel({ modelPath: file, vocabOnly: true });
}

type Encode = (text: string) => readonly number[] | Promise<readonly number[]>;

describe.each(CASES)("the tokenizer of $name", (family) => {
  let ours: Encode;
  let others: Record<KnownDifference["of"], Encode>;
  let dispose = async (): Promise<void> => {};

  beforeAll(async () => {
    const checkpoint = modelWith(family);
    const file = path.join(root, `${family.name}.gguf`);
    await exportGguf(file, checkpoint, { kind: "f32" });
    const tokenizer = await Tokenizer.load(checkpoint.directory);
    ours = async (text) => (await tokenizer.encode([text], false)).flat();
    const back = NativeTokenizer.fromString(
      JSON.stringify(tokenizerFiles(file, openGguf(file).metadata)["tokenizer.json"]),
    );
    const reference = TokenizerLoader.fromPreTrained({
      tokenizerJSON: readJson(definitionOf(family.name)),
      tokenizerConfig: readJson(path.join(checkpoint.directory, "tokenizer_config.json")),
    });
    const model = await vocabularyInLlamaCpp(file);
    dispose = () => model.dispose();
    others = {
      reference: (text) => reference.encode(text, { add_special_tokens: false }),
      "llama.cpp": (text) => [...model.tokenize(text, true)],
      "read back": async (text) => (await back.encode(text, null, { addSpecialTokens: false })).getIds(),
    };
  }, 300_000); // vocabularies are large
  afterAll(() => dispose());

  it.each([
    { of: "reference" as const, title: "is that of the package's own code" },
    { of: "llama.cpp" as const, title: "is that of llama.cpp on the written GGUF file" },
    { of: "read back" as const, title: "comes back from the GGUF file" },
  ])("$title", async ({ of }) => {
    const other = others[of];
    const differences = family.differences.filter((difference) => difference.of === of);
    const comparable = (text: string) => !differences.some(({ texts }) => texts.test(text));
    const samples = [...TEXTS, ...family.special].filter(comparable);
    expect(samples.length).toBeGreaterThan(25);
    const pieces = samples.flatMap((sample) => sample.match(/\s+|[^\s]+/gu) ?? []);
    const mixed = fc.array(fc.constantFrom(...pieces, ...new Set(pieces.join(""))), { maxLength: 15 });
    await fc.assert(
      fc.asyncProperty(mixed.map((parts) => parts.join("")).filter(comparable), async (text) => {
        expect(await other(text), JSON.stringify(text)).toEqual(await ours(text));
      }),
      { numRuns: 300, seed: 18, examples: samples.map((sample) => [sample]) },
    );
    for (const { example, why } of differences) expect(await other(example), why).not.toEqual(await ours(example));
  });
});

it("llama3 cuts and merges as llama3_1 does", () => {
  const [before, after] = ["llama3", "llama3_1"].map((name) => readJson(definitionOf(name)));
  for (const part of ["model", "pre_tokenizer", "normalizer", "added_tokens"])
    expect(JSON.stringify(before[part]) === JSON.stringify(after[part]), part).toBe(true);
});
