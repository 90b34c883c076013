import { cpSync, readdirSync, readFileSync, statSync, utimesSync, writeFileSync } from "node:fs";
import path from "node:path";
import { describe, expect, it } from "vitest";
import { openCorpus, Sequences, Tokenizer, type TokenStream, TrainingOrder } from "../../src/data/index.js";
import { openData } from "../../src/jobs/open-data.js";
import { hashBytes } from "../../src/system/files.js";
import { temporaryDirectory } from "../temporary.js";
import { streamOf } from "../tokens.js";

const tiny = path.resolve(import.meta.dirname, "../../examples/tiny-config");
const directory = temporaryDirectory();
const cacheDir = path.join(directory, "cache");

const all = (stream: TokenStream): number[] => {
  const ids = new Int32Array(stream.length);
  stream.copy(0, stream.length, ids, 0);
  return [...ids];
};

const reader = (needsBeginToken: boolean) => ({ directory: tiny, model: { needsBeginToken } });

describe("special tokens", () => {
  const loaded = async (name: string, files: Readonly<Record<string, object>>) => {
    const copy = path.join(directory, name);
    cpSync(tiny, copy, { recursive: true });
    writeFileSync(path.join(copy, "tokenizer_config.json"), JSON.stringify({ model_max_length: 512 }));
    for (const [file, content] of Object.entries(files)) writeFileSync(path.join(copy, file), JSON.stringify(content));
    return Tokenizer.load(copy);
  };

  it("are those of the tokenizer's configuration, of special_tokens_map.json, or by the model's ids", async () => {
    const named = await Tokenizer.load(tiny);
    const mapped = { "special_tokens_map.json": { bos_token: "<|begin|>", eos_token: { content: "<|end|>" } } };
    const id = named.eos!.id;
    for (const [name, files] of [
      ["mapped", mapped],
      ["by id", { "config.json": { bos_token_id: named.bos!.id, eos_token_id: id } }],
      ["of several", { "generation_config.json": { bos_token_id: named.bos!.id, eos_token_id: [id, 5] } }],
    ] as const) {
      const tokenizer = await loaded(name, { "config.json": {}, ...files });
      expect([tokenizer.bos, tokenizer.eos], name).toEqual([named.bos, named.eos]);
    }
    const without = await loaded("none", { ...mapped, "tokenizer_config.json": { bos_token: null, eos_token: null } });
    expect([without.bos, without.eos]).toEqual([undefined, undefined]);
  });

  it("that end an answer are all that the generation's configuration lists", async () => {
    const tokenizer = await loaded("ends", { "generation_config.json": { eos_token_id: [1, 7] } });
    expect([...tokenizer.ends].sort()).toEqual([1, 7]);
    const { eos, ends } = await Tokenizer.load(tiny);
    expect([...ends]).toEqual([eos!.id]);
  });
});

describe("a corpus", () => {
  const file = path.join(directory, "corpus.txt");
  const documents = Array.from({ length: 400 }, (_, i) => `Story ${i}: Mira had ${i} kites.`);
  writeFileSync(file, documents.join("<|endoftext|>"));

  it("is its documents' tokens in order, each with the begin token", async () => {
    const tokenizer = await Tokenizer.load(tiny);
    const { train, heldOut } = await openCorpus([file], tokenizer, { cacheDir });
    expect(all(train)).toEqual((await tokenizer.encode(documents, true)).flat());
    expect(all(train)[0]).toBe(0);
    expect(heldOut.length).toBe(0);
    expect(await tokenizer.decode(all(train).slice(0, 40))).toMatch(/^Story 0: Mira had 0 kites\.Story 1/);
  });

  it("has the tokens that end a text after each document, however long, and no others between them", async () => {
    const copy = path.join(directory, "ended");
    cpSync(tiny, copy, { recursive: true });
    const file = path.join(copy, "tokenizer.json");
    const definition = JSON.parse(readFileSync(file, "utf8"));
    const { bos, eos } = await Tokenizer.load(tiny);
    for (const [title, isBegun] of [
      ["begun and ended", true],
      ["ended", false],
    ] as const) {
      const special = (token: { text: string }) => ({ SpecialToken: { id: token.text, type_id: 0 } });
      const single = [...(isBegun ? [special(bos!)] : []), { Sequence: { id: "A", type_id: 0 } }, special(eos!)];
      const named = [bos!, eos!].map(({ id, text }) => [text, { id: text, ids: [id], tokens: [text] }]);
      definition.post_processor = {
        type: "TemplateProcessing",
        single,
        pair: single,
        special_tokens: Object.fromEntries(named),
      };
      writeFileSync(file, JSON.stringify(definition));
      const tokenizer = await Tokenizer.load(copy);
      expect([tokenizer.beginToken, tokenizer.endTokens], title).toEqual([isBegun ? bos!.id : undefined, [eos!.id]]);
      const texts = ["Mira had a kite. ".repeat(20_000), "It was red.", "It flew."];
      const data = path.join(directory, `${title}.jsonl`);
      writeFileSync(data, texts.map((text) => JSON.stringify({ text })).join("\n"));
      const ids = all((await openCorpus([data], tokenizer, { cacheDir })).train);
      expect(
        ids.filter((id) => id === eos!.id),
        title,
      ).toHaveLength(3);
      const whole = (await tokenizer.encode(texts.slice(1), true)).flat();
      expect(ids.slice(-whole.length - 1), title).toEqual([eos!.id, ...whole]);
    }
  });

  it("stops while it is tokenized, and leaves nothing", async () => {
    const tokenizer = await Tokenizer.load(tiny);
    const [data, stopped] = [path.join(directory, "long.txt"), path.join(directory, "stopped")];
    writeFileSync(data, "Mira had a red kite. ".repeat(300_000));
    const abort = new AbortController();
    const seen: number[] = [];
    const onProgress = ({ bytes }: { bytes: number }) => {
      seen.push(bytes);
      abort.abort();
    };
    const options = { cacheDir: stopped, onProgress, signal: abort.signal };
    await expect(openCorpus([data], tokenizer, options)).rejects.toThrow(/abort/);
    expect(seen).toHaveLength(1);
    expect(seen[0]).toBeGreaterThan(0); // within the file, too
    expect(seen[0]).toBeLessThan(6_300_000);
    expect(readdirSync(path.join(stopped, "tokens"))).toEqual([]);
  });

  it("is another where a file was replaced by one of its size and time, or the template's tokens have changed", async () => {
    const data = path.join(directory, "replaced.jsonl");
    const conversation = (text: string) =>
      writeFileSync(data, JSON.stringify({ messages: [{ role: "user", content: text }] }));
    const copy = path.join(directory, "templated");
    cpSync(tiny, copy, { recursive: true });
    const config = JSON.parse(readFileSync(path.join(copy, "tokenizer_config.json"), "utf8"));
    const chat_template = "{% for message in messages %}{{ message.content }}{{ eos_token }}{% endfor %}";
    const idsOf = async (eos: string) => {
      writeFileSync(
        path.join(copy, "tokenizer_config.json"),
        JSON.stringify({ ...config, chat_template, eos_token: eos }),
      );
      return all((await openCorpus([data], await Tokenizer.load(copy), { cacheDir })).train);
    };
    conversation("Mira had a kite.");
    const time = statSync(data).mtime;
    const [first, ended] = [await idsOf("<|end|>"), await idsOf("<|begin|>")];
    expect(ended).not.toEqual(first);
    conversation("Tom had a boat!!");
    utimesSync(data, time, time);
    expect(await idsOf("<|end|>")).not.toEqual(first);
  });

  it("is tokenized once, and anew when its content or the options change", async () => {
    const tokenizer = await Tokenizer.load(tiny);
    const opened = () => readdirSync(path.join(cacheDir, "tokens")).length;
    const first = await openCorpus([file], tokenizer, { cacheDir });
    const before = opened();
    let tokenized = false;
    const again = await openCorpus([file], tokenizer, { cacheDir, onProgress: () => (tokenized = true) });
    expect(tokenized).toBe(false);
    expect(again.train.id).toBe(first.train.id);
    await openCorpus([file], tokenizer, { cacheDir, separator: "kites" });
    const changed = path.join(directory, "changed.txt");
    writeFileSync(changed, `${documents.join("<|endoftext|>")}!`);
    expect((await openCorpus([changed], tokenizer, { cacheDir })).train.id).not.toBe(first.train.id);
    expect(opened()).toBe(before + 2);
  });

  it("is tokenized anew for another token between documents", async () => {
    const copies = ["<|end|>", "<|begin|>"].map((eos_token, i) => {
      const copy = path.join(directory, `ending-${i}`);
      cpSync(tiny, copy, { recursive: true });
      const definition = JSON.parse(readFileSync(path.join(copy, "tokenizer.json"), "utf8"));
      writeFileSync(path.join(copy, "tokenizer.json"), JSON.stringify({ ...definition, post_processor: null }));
      writeFileSync(path.join(copy, "tokenizer_config.json"), JSON.stringify({ eos_token }));
      return copy;
    });
    for (const copy of copies) {
      const tokenizer = await Tokenizer.load(copy);
      const { train } = await openCorpus([file], tokenizer, { cacheDir });
      const ends = all(train).filter((id) => id === tokenizer.eos?.id).length;
      expect(ends).toBe(documents.length - 1);
    }
  });

  it("says how many rows had no text, also when it was tokenized before, and tells CSV from text by the name", async () => {
    const tokenizer = await Tokenizer.load(tiny);
    const rows = path.join(directory, "rows.jsonl");
    writeFileSync(rows, documents.map((text, i) => JSON.stringify({ text: i % 4 === 0 ? null : text })).join("\n"));
    for (const _ of ["first", "again"]) {
      const notes: string[] = [];
      await openCorpus([rows], tokenizer, { cacheDir, onNote: (note) => notes.push(note) });
      expect(notes).toEqual([expect.stringMatching(/rows\.jsonl: 100 of 400 rows were left out/)]);
    }
    const names = ["same.txt", "same.csv"].map((name) => path.join(directory, name));
    for (const name of names) writeFileSync(name, "text\nMira had a kite.\n");
    const [text, table] = await Promise.all(names.map((name) => openCorpus([name], tokenizer, { cacheDir })));
    expect(text?.train.length).toBeGreaterThan(table?.train.length ?? 0);
  });

  it("of many short documents has all of them in order", async () => {
    const many = path.join(directory, "many.jsonl");
    const texts = Array.from({ length: 20_000 }, (_, i) => `kite ${i}`);
    writeFileSync(many, texts.map((text) => JSON.stringify({ text })).join("\n"));
    const tokenizer = await Tokenizer.load(tiny);
    const { train } = await openCorpus([many], tokenizer, { cacheDir });
    expect(all(train)).toEqual((await tokenizer.encode(texts, true)).flat());
  });

  it("holds out whole documents by their content, copies together", async () => {
    const tokenizer = await Tokenizer.load(tiny);
    const doubled = path.join(directory, "doubled.txt");
    writeFileSync(doubled, [...documents, ...documents].join("<|endoftext|>"));
    const { train, heldOut } = await openCorpus([doubled], tokenizer, { cacheDir, heldOutShare: 0.2 });
    const texts = async (stream: TokenStream) =>
      [...(await tokenizer.decode(all(stream))).matchAll(/Story \d+:/g)].map(([text]) => text);
    const [kept, out] = [await texts(train), await texts(heldOut)];
    expect(kept.length + out.length).toBe(800);
    expect(out.length).toBeGreaterThan(80);
    expect(out.length).toBeLessThan(240);
    expect(kept.filter((text) => out.includes(text))).toEqual([]);
  });

  it("holds out long documents as a whole, wherever they are divided as they are read", async () => {
    const tokenizer = await Tokenizer.load(tiny);
    const long = path.join(directory, "long.txt");
    const lines = (i: number) => Array.from({ length: 700 }, (_, k) => `Story ${i}: Mira had ${k} kites.\n`).join("");
    const stories = Array.from({ length: 60 }, (_, i) => lines(i));
    writeFileSync(long, [...stories, ...stories].join("<|endoftext|>"));
    const { train, heldOut } = await openCorpus([long], tokenizer, { cacheDir, heldOutShare: 0.3 });
    const storiesOf = async (stream: TokenStream) =>
      new Set([...(await tokenizer.decode(all(stream))).matchAll(/Story (\d+):/g)].map(([, number]) => number));
    const [kept, out] = [await storiesOf(train), await storiesOf(heldOut)];
    expect(kept.size + out.size).toBe(60);
    expect(out.size).toBeGreaterThan(5);
    expect([...kept].filter((number) => out.has(number))).toEqual([]);
  });

  it("has parts, which have parts", async () => {
    const { train } = await openCorpus([file], await Tokenizer.load(tiny), { cacheDir });
    const ids = all(train);
    const part = train.part(10, 300);
    expect(all(part)).toEqual(ids.slice(10, 300));
    expect(all(part.part(5, 40))).toEqual(ids.slice(15, 50));
    expect(part.id).not.toBe(train.part(10, 301).id);
    for (const [from, to] of [
      [-1, 4],
      [5, 4],
      [0, 291],
    ] as const)
      expect(() => part.part(from, to)).toThrow("lie outside");
  });

  it("of one document is validated on its end", async () => {
    const book = path.join(directory, "book.txt");
    writeFileSync(book, documents.join("\n"));
    const { train, validation } = await openData(reader(false), { data: [book], cacheDir }, {});
    const whole = (await openCorpus([book], await Tokenizer.load(tiny), { cacheDir })).train;
    expect([...all(train), ...all(validation)]).toEqual(all(whole));
    expect(validation.length).toBe(Math.max(256, Math.ceil(0.02 * whole.length)));
    for (const beginning of ["a", "b", "c"]) {
      // of one document in fifty the beginning says that it is held out
      const held = Array.from({ length: 1000 }, (_, i) => `${beginning}${i} ${documents.join("\n")}`).find(
        (text) => Number.parseInt(hashBytes(text.slice(0, 2048)).slice(0, 8), 16) / 2 ** 32 < 0.02,
      )!;
      writeFileSync(book, held);
      const of = await openData(reader(false), { data: [book], cacheDir }, {});
      expect(of.validation.length).toBe(Math.max(256, Math.ceil(0.02 * (of.train.length + of.validation.length))));
      writeFileSync(book, [held, documents.slice(0, 60).join(" "), documents.join(" ")].join("<|endoftext|>"));
      const ofTwo = await openData(reader(false), { data: [book], cacheDir }, {});
      expect(ofTwo.train.length).toBeGreaterThan(10 * ofTwo.validation.length);
    }
    const note = path.join(directory, "note.txt");
    writeFileSync(note, documents.slice(0, 9).join("\n"));
    await expect(openData(reader(false), { data: [note], cacheDir }, {})).rejects.toThrow(
      "give more data, or validation data",
    );
  });
});

describe("sequences", () => {
  it("predict every token but the first once", () => {
    const ids = Array.from({ length: 101 }, (_, i) => i);
    const sequences = new Sequences(streamOf(ids, directory), 10);
    expect(sequences.count).toBe(10);
    const { tokens, targets } = sequences.batch([...Array(10).keys()]);
    expect([...tokens]).toEqual(ids.slice(0, -1));
    expect([...targets]).toEqual(ids.slice(1));
    expect(() => new Sequences(streamOf([1, 2, 3], directory, "short"), 3)).toThrow(
      /3 tokens, but one sequence needs 4/,
    );
  });

  it("of a model that needs it begin each with the token that texts begin with", async () => {
    const data = { data: [path.join(directory, "corpus.txt")], cacheDir };
    const { train, validation } = await openData(reader(true), data, {});
    expect(train.id).not.toBe((await openData(reader(false), data, {})).train.id);
    for (const stream of [train, validation, train.part(3, 150)]) {
      const { tokens, targets } = new Sequences(stream, 16).batch([0, 1, 3]);
      for (const [row, number] of [0, 1, 3].entries()) {
        const from = number * 16;
        expect([...tokens.subarray(row * 16, row * 16 + 16)]).toEqual([0, ...all(stream).slice(from + 1, from + 16)]);
        expect([...targets.subarray(row * 16, row * 16 + 16)]).toEqual(all(stream).slice(from + 1, from + 17));
      }
    }
  });

  it("are trained on in an order that each epoch permutes anew", () => {
    const order = new TrainingOrder(50, 7);
    const epochs = [0, 1].map((epoch) => order.range(epoch * 50, 50));
    for (const epoch of epochs) expect([...epoch].sort((a, b) => a - b)).toEqual([...Array(50).keys()]);
    expect(epochs[0]).not.toEqual(epochs[1]);
    expect(new TrainingOrder(50, 7).range(73, 5)).toEqual(epochs[1]!.slice(23, 28));
  });
});
