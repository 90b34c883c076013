import { cpSync, mkdirSync, readFileSync, writeFileSync } from "node:fs";
import path from "node:path";
import { describe, expect, it } from "vitest";
import { chatTemplateIn, openGguf, writeCheckpoint } from "../../src/checkpoint/index.js";
import { readJsonObject } from "../../src/checkpoint/json.js";
import { runnableGguf } from "../../src/jobs/index.js";
import { openCheckpoint } from "../../src/models/index.js";
import { exportGguf } from "../../src/quantize/index.js";
import { temporaryDirectory } from "../temporary.js";

const teacher = path.resolve(import.meta.dirname, "../../examples/tiny-teacher");
const root = temporaryDirectory();
process.env.COPPICE_CACHE = path.join(root, "cache");
let made = 0;

/** The demo's teacher with a chat template in tokenizer_config.json. */
function modelWith(chatTemplate: unknown): string {
  const directory = path.join(root, String(made++));
  cpSync(teacher, directory, { recursive: true });
  const file = path.join(directory, "tokenizer_config.json");
  writeFileSync(file, JSON.stringify({ ...readJsonObject(file), chat_template: chatTemplate }));
  return directory;
}

async function exported(directory: string) {
  const file = `${directory}.gguf`;
  await exportGguf(file, openCheckpoint(directory), { kind: "f32" });
  const back = readJsonObject(path.join(openCheckpoint(file).directory, "tokenizer_config.json")).chat_template;
  return { metadata: openGguf(file).metadata, back };
}

const [PLAIN, TOOLS, RAG] = ["{{ messages }}", "{{ tools }}", "{{ documents }}"];
const NAMED = [
  { name: "default", template: PLAIN },
  { name: "tool_use", template: TOOLS },
];

describe("chat templates with names", () => {
  it("go into a GGUF file as llama.cpp reads them, and come back", async () => {
    const directory = modelWith([...NAMED, { name: "rag-v2", template: RAG }]);
    expect(chatTemplateIn(directory)).toBe(PLAIN);
    const { metadata, back } = await exported(directory);
    expect(metadata.get("tokenizer.chat_template")?.value).toBe(PLAIN);
    expect(metadata.get("tokenizer.chat_templates")?.value).toEqual(["tool_use", "rag_v2"]);
    expect(metadata.get("tokenizer.chat_template.tool_use")?.value).toBe(TOOLS);
    expect(back).toEqual([...NAMED, { name: "rag_v2", template: RAG }]);
  });

  it("are read from files of their own, which are carried along with a model", async () => {
    const directory = modelWith("unused, as in transformers");
    writeFileSync(path.join(directory, "chat_template.jinja"), PLAIN);
    mkdirSync(path.join(directory, "additional_chat_templates"));
    writeFileSync(path.join(directory, "additional_chat_templates/tool_use.jinja"), TOOLS);
    expect((await exported(directory)).back).toEqual(NAMED);
    const copy = path.join(root, "copy");
    const { config, source } = openCheckpoint(directory);
    writeCheckpoint(copy, config, source, { carryFrom: directory });
    expect(readFileSync(path.join(copy, "additional_chat_templates/tool_use.jinja"), "utf8")).toBe(TOOLS);
    expect((await exported(copy)).back).toEqual(NAMED);
  });

  it("have the first as the default where none is called so", async () => {
    const directory = modelWith([null, 7, { name: "tool_use", template: TOOLS }, { name: "x" }]);
    expect(chatTemplateIn(directory)).toBe(TOOLS);
    const { metadata } = await exported(directory);
    expect(metadata.get("tokenizer.chat_template")?.value).toBe(TOOLS);
    expect(metadata.get("tokenizer.chat_templates")?.value).toEqual(["tool_use"]);
  });
});

it("a single chat template stays a text", async () => {
  const { metadata, back } = await exported(modelWith(PLAIN));
  expect(metadata.has("tokenizer.chat_templates")).toBe(false);
  expect(back).toBe(PLAIN);
});

it("templates in files of their own are among a model's files: what was exported before one changed is not taken again", async () => {
  const directory = modelWith(PLAIN);
  writeFileSync(path.join(directory, "chat_template.jinja"), PLAIN);
  mkdirSync(path.join(directory, "additional_chat_templates"));
  const file = path.join(directory, "additional_chat_templates/tool_use.jinja");
  const toolUseOf = async (template: string) => {
    writeFileSync(file, template);
    const exportedFile = await runnableGguf(directory, {});
    return openGguf(exportedFile).metadata.get("tokenizer.chat_template.tool_use")?.value;
  };
  expect(await toolUseOf(TOOLS)).toBe(TOOLS);
  expect(await toolUseOf(`${TOOLS} and more`)).toBe(`${TOOLS} and more`);
});
