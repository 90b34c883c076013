import { cpSync, readFileSync, writeFileSync } from "node:fs";
import path from "node:path";
import { parquetWriteBuffer } from "hyparquet-writer";
import { describe, expect, it } from "vitest";
import { openCorpus, Tokenizer, type TokenStream } from "../../src/data/index.js";
import { openData } from "../../src/jobs/open-data.js";
import { temporaryDirectory } from "../temporary.js";

const tiny = path.resolve(import.meta.dirname, "../../examples/tiny-config");
const directory = temporaryDirectory();
const cacheDir = path.join(directory, "cache");

/** The form of the tests' model: its begin token, then each message between marks of text. */
const TEMPLATE = `{{ bos_token }}{% for m in messages %}{% if m.role == "tool" %}{{ raise_exception("no tools") }}{% endif %}[{{ m.role }}] {{ m.content }}{{ eos_token }}{% endfor %}`;

/** A copy of the tests' model with a chat template, or without. */
function modelWith(name: string, chatTemplate: string | undefined): string {
  const copy = path.join(directory, name);
  cpSync(tiny, copy, { recursive: true });
  const file = path.join(copy, "tokenizer_config.json");
  const settings = JSON.parse(readFileSync(file, "utf8")) as object;
  writeFileSync(file, JSON.stringify({ ...settings, chat_template: chatTemplate }));
  return copy;
}
const chatModel = modelWith("chat", TEMPLATE);

const all = (stream: TokenStream): number[] => {
  const ids = new Int32Array(stream.length);
  stream.copy(0, stream.length, ids, 0);
  return [...ids];
};

async function corpusOf(name: string, content: string | Uint8Array, field: string | undefined, model = chatModel) {
  const file = path.join(directory, name);
  writeFileSync(file, content);
  const notes: string[] = [];
  const tokenizer = await Tokenizer.load(model);
  const corpus = await openCorpus([file], tokenizer, {
    cacheDir,
    ...(field === undefined ? {} : { field }),
    onNote: (note) => notes.push(note),
  });
  return { ...corpus, notes, tokenizer, file };
}

const lines = (rows: readonly object[]): string => rows.map((row) => JSON.stringify(row)).join("\n");
const HELLO = [
  { role: "user", content: "Who has a kite?" },
  { role: "assistant", content: "Mira has one." },
];

/** What the template makes of `HELLO`, by hand. */
async function helloIds(tokenizer: Tokenizer): Promise<number[]> {
  const [begin, end] = [tokenizer.bos!, tokenizer.eos!];
  const [question = [], answer = []] = await tokenizer.encode(
    ["[user] Who has a kite?", "[assistant] Mira has one."],
    false,
  );
  return [begin.id, ...question, end.id, ...answer, end.id];
}

describe("conversations", () => {
  const parquet = new Uint8Array(
    parquetWriteBuffer({
      columnData: [{ name: "messages", data: [HELLO.map((message) => ({ ...message, tool_calls: null }))] }],
      schema: [
        { name: "root", num_children: 1 },
        { name: "messages", repetition_type: "OPTIONAL", num_children: 1, converted_type: "LIST" },
        { name: "list", repetition_type: "REPEATED", num_children: 1 },
        { name: "element", repetition_type: "OPTIONAL", num_children: 3 },
        { name: "role", type: "BYTE_ARRAY", converted_type: "UTF8", repetition_type: "OPTIONAL" },
        { name: "content", type: "BYTE_ARRAY", converted_type: "UTF8", repetition_type: "OPTIONAL" },
        { name: "tool_calls", type: "BYTE_ARRAY", converted_type: "UTF8", repetition_type: "OPTIONAL" },
      ],
    }),
  );
  it.each<[string, string, string | Uint8Array, string]>([
    ["OpenAI's form", "openai.jsonl", lines([{ messages: HELLO }]), "messages"],
    [
      "parts",
      "parts.jsonl",
      lines([{ messages: HELLO.map((m) => ({ ...m, content: [{ type: "text", text: m.content }] })) }]),
      "messages",
    ],
    [
      "ShareGPT's form",
      "sharegpt.jsonl",
      lines([
        {
          conversations: [
            { from: "human", value: "Who has a kite?" },
            { from: "gpt", value: "Mira has one." },
          ],
        },
      ]),
      "conversations",
    ],
    ["a path", "path.jsonl", lines([{ data: { chat: HELLO } }]), "data.chat"],
    ["Parquet", "chat.parquet", parquet, "messages"],
  ])("of %s are in the form of the model's chat template, with its special tokens", async (_, name, content, field) => {
    const { train, tokenizer, conversations } = await corpusOf(name, content, field);
    expect(all(train)).toEqual(await helloIds(tokenizer));
    expect(conversations).toBe(1);
  });

  it.each<[string, string | Uint8Array]>([
    ["one.json", JSON.stringify({ messages: HELLO })],
    ["list.json", JSON.stringify([{ text: null, id: 7, messages: HELLO }])],
    ["rows.jsonl", lines([{ id: 7, conversations: HELLO }])],
    ["unnamed.parquet", parquet],
  ])("are found where data sets keep them, if no field is named: %s", async (name, content) => {
    const { train, tokenizer } = await corpusOf(name, content, undefined);
    expect(all(train)).toEqual(await helloIds(tokenizer));
  });

  it("begin with the begin token once, whether the template has it or not", async () => {
    const model = modelWith("without begin", TEMPLATE.replace("{{ bos_token }}", ""));
    const { train, tokenizer } = await corpusOf(
      "begin.jsonl",
      lines([{ messages: HELLO }, { messages: HELLO }]),
      "messages",
      model,
    );
    const ids = await helloIds(tokenizer);
    expect(tokenizer.beginToken).toBe(tokenizer.bos!.id);
    expect(all(train)).toEqual([...ids, ...ids]);
  });

  it("stand beside plain texts", async () => {
    const rows = [{ text: "A story." }, { text: [{ role: "user", content: "Hello" }] }, { text: "Another." }];
    const { train, tokenizer, conversations } = await corpusOf("both.jsonl", lines(rows), "text");
    const begin = tokenizer.beginToken;
    expect(all(train).filter((id) => id === begin)).toHaveLength(3);
    expect(conversations).toBe(1);
  });

  it("that the template does not take are left out and counted; where it takes none, that is an error", async () => {
    const refused = { messages: [{ role: "tool", content: "42" }] };
    const { train, notes, tokenizer } = await corpusOf(
      "some.jsonl",
      lines([refused, { messages: HELLO }, refused]),
      "messages",
    );
    expect(all(train)).toEqual(await helloIds(tokenizer));
    expect(notes).toEqual([
      expect.stringMatching(/some\.jsonl: 2 of 3 conversations were left out, the first at .*some\.jsonl:1.*no tools/),
    ]);
    await expect(corpusOf("none.jsonl", lines([refused, refused]), undefined)).rejects.toThrow(
      /none\.jsonl:1.*no tools.*nor any other of 2/,
    );
  });

  it("need a chat template", async () => {
    const model = modelWith("plain", undefined);
    await expect(corpusOf("hello.jsonl", lines([{ messages: HELLO }]), "messages", model)).rejects.toThrow(
      /hello\.jsonl:1.*no chat template; --field messages\.content/,
    );
    const { conversations } = await corpusOf("texts.jsonl", lines([{ messages: HELLO }]), "messages.content", model);
    expect(conversations).toBe(0);
  });

  it("are held out by what was said, not by the system's text that all begin with", async () => {
    const system = { role: "system", content: "You are helpful. ".repeat(300) };
    const rows = Array.from({ length: 60 }, (_, i) => ({
      messages: [system, { role: "user", content: `What is ${i}?` }, { role: "assistant", content: `It is ${i}.` }],
    }));
    const file = path.join(directory, "system.jsonl");
    writeFileSync(file, lines(rows));
    const tokenizer = await Tokenizer.load(chatModel);
    const corpus = await openCorpus([file], tokenizer, { cacheDir, field: "messages", heldOutShare: 0.5 });
    const begin = tokenizer.beginToken;
    const count = (stream: TokenStream) => all(stream).filter((id) => id === begin).length;
    expect(count(corpus.train) + count(corpus.heldOut)).toBe(60);
    expect(Math.min(count(corpus.train), count(corpus.heldOut))).toBeGreaterThan(10);
  });

  it("are missed in the data of a model that answers", async () => {
    const story = "Mira had a kite and a lamp, and both were red. ".repeat(4);
    const plain = path.join(directory, "plain.jsonl");
    writeFileSync(plain, lines(Array.from({ length: 200 }, (_, i) => ({ text: `${i} ${story}` }))));
    const rendered = path.join(directory, "rendered.jsonl");
    const turns = `[user] Who?<|end|>[assistant] ${story}`;
    writeFileSync(rendered, lines(Array.from({ length: 200 }, (_, i) => ({ text: `${turns}${i}` }))));
    const notesFor = async (model: string, data: string) => {
      const notes: string[] = [];
      const reader = { directory: model, model: { needsBeginToken: false } };
      await openData(reader, { data: [data], cacheDir }, { onNote: (note) => notes.push(note) });
      return notes.filter((note) => note.includes("no conversations"));
    };
    expect(await notesFor(chatModel, plain)).toHaveLength(1);
    expect(await notesFor(chatModel, rendered)).toEqual([]);
    expect(await notesFor(tiny, plain)).toEqual([]);
  });
});
