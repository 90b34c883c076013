/**
 * Learns a byte-level byte-pair encoding (Sennrich et al. 2016) from text and writes it as `tokenizer.json`.
 *
 *     npx tsx examples/train-tokenizer.ts stories.txt 512 examples/tiny-config
 */
import { readFileSync } from "node:fs";
import path from "node:path";
import { byteLevelAlphabet } from "tokenizers";
import { writeJson } from "../src/system/files.js";

const SPECIAL = ["<|begin|>", "<|end|>"];
const WORDS = / ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+/gu;

/** The printable character that stands for each byte in a byte-level vocabulary (GPT-2's table). */
function byteCharacters(): string[] {
  const printable = (byte: number) => (byte >= 33 && byte <= 126) || (byte >= 161 && byte <= 172) || byte >= 174;
  let next = 256;
  return Array.from({ length: 256 }, (_, byte) => String.fromCodePoint(printable(byte) ? byte : next++));
}

function learnMerges(text: string, vocabSize: number, alphabet: readonly string[]): [string, string][] {
  const characters = byteCharacters();
  const counts = new Map<string, number>();
  for (const [word] of text.matchAll(WORDS)) counts.set(word, (counts.get(word) ?? 0) + 1);
  const words = [...counts].map(([word, count]) => ({
    pieces: [...Buffer.from(word)].map((byte) => characters[byte] as string),
    count,
  }));
  const merges: [string, string][] = [];
  while (alphabet.length + SPECIAL.length + merges.length < vocabSize) {
    const pairs = new Map<string, number>();
    for (const { pieces, count } of words)
      for (let i = 0; i + 1 < pieces.length; i++) {
        const key = `${pieces[i]} ${pieces[i + 1]}`;
        pairs.set(key, (pairs.get(key) ?? 0) + count);
      }
    const best = [...pairs].sort((a, b) => b[1] - a[1] || (a[0] < b[0] ? -1 : 1))[0];
    if (best === undefined) break;
    const [left, right] = best[0].split(" ") as [string, string];
    merges.push([left, right]);
    for (const word of words) {
      for (let i = 0; i + 1 < word.pieces.length; i++)
        if (word.pieces[i] === left && word.pieces[i + 1] === right) word.pieces.splice(i, 2, left + right);
    }
  }
  return merges;
}

const [file = "", size = "512", directory = "."] = process.argv.slice(2);
const alphabet = byteLevelAlphabet().sort();
const merges = learnMerges(readFileSync(file, "utf8").replaceAll("<|endoftext|>", ""), Number(size), alphabet);
const tokens = [...SPECIAL, ...alphabet, ...merges.map((pair) => pair.join(""))];
const begin = SPECIAL[0] as string;
writeJson(path.join(directory, "tokenizer.json"), {
  version: "1.0",
  truncation: null,
  padding: null,
  added_tokens: SPECIAL.map((content, id) => ({
    id,
    content,
    single_word: false,
    lstrip: false,
    rstrip: false,
    normalized: false,
    special: true,
  })),
  normalizer: null,
  pre_tokenizer: { type: "ByteLevel", add_prefix_space: false, trim_offsets: true, use_regex: true },
  post_processor: {
    type: "TemplateProcessing",
    single: [{ SpecialToken: { id: begin, type_id: 0 } }, { Sequence: { id: "A", type_id: 0 } }],
    pair: [{ Sequence: { id: "A", type_id: 0 } }, { Sequence: { id: "B", type_id: 1 } }],
    special_tokens: { [begin]: { id: begin, ids: [0], tokens: [begin] } },
  },
  decoder: { type: "ByteLevel", add_prefix_space: true, trim_offsets: true, use_regex: true },
  model: {
    type: "BPE",
    dropout: null,
    unk_token: null,
    continuing_subword_prefix: null,
    end_of_word_suffix: null,
    fuse_unk: false,
    byte_fallback: false,
    ignore_merges: false,
    vocab: Object.fromEntries(tokens.map((token, id) => [token, id])),
    merges,
  },
});
writeJson(path.join(directory, "tokenizer_config.json"), {
  tokenizer_class: "PreTrainedTokenizerFast",
  bos_token: SPECIAL[0],
  eos_token: SPECIAL[1],
  model_max_length: 512,
  clean_up_tokenization_spaces: false,
});
