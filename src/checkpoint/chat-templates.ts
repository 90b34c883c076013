import { existsSync, readdirSync, readFileSync, statSync } from "node:fs";
import path from "node:path";
import { type GgufMetadata, type GgufValue, gguf } from "./gguf-format.js";
import { readOptionalJson } from "./json.js";

/** Chat templates (Jinja), of which a model may have several by names, and their places in directories and GGUF files. */

/** A folder of templates beside the default one, each in a file by its name. */
export const NAMED_TEMPLATES = "additional_chat_templates";
const DEFAULT_TEMPLATE = "default";

/** The files of named templates in a model directory, relative to it. */
export function namedTemplateFiles(directory: string): string[] {
  const folder = path.join(directory, NAMED_TEMPLATES);
  if (!statSync(folder, { throwIfNoEntry: false })?.isDirectory()) return [];
  const files = readdirSync(folder).filter((name) => name.endsWith(".jinja"));
  return files.sort().map((name) => `${NAMED_TEMPLATES}/${name}`);
}

/** The chat template (Jinja) among a model directory's files; the default one of several. */
export const chatTemplateIn = (directory: string): string | undefined =>
  chatTemplates(directory, readOptionalJson(directory, "tokenizer_config.json")).get(DEFAULT_TEMPLATE);

/** A model's chat templates by their names, as transformers reads them; the first is the default where none is called so. */
export function chatTemplates(
  directory: string,
  settings: Readonly<Record<string, unknown>>,
): ReadonlyMap<string, string> {
  const templates = new Map<string, string>();
  const file = path.join(directory, "chat_template.jinja");
  if (existsSync(file)) {
    templates.set(DEFAULT_TEMPLATE, readFileSync(file, "utf8"));
    for (const name of namedTemplateFiles(directory))
      templates.set(path.basename(name, ".jinja"), readFileSync(path.join(directory, name), "utf8"));
    return templates;
  }
  // transformers wrote the latter for processors
  const template = settings.chat_template ?? readOptionalJson(directory, "chat_template.json").chat_template;
  if (typeof template === "string") return templates.set(DEFAULT_TEMPLATE, template);
  for (const entry of Array.isArray(template) ? (template as unknown[]) : []) {
    const { name, template: text } = (entry ?? {}) as Readonly<Record<string, unknown>>;
    if (typeof name === "string" && typeof text === "string") templates.set(name, text);
  }
  const [first] = templates.values();
  if (first !== undefined && !templates.has(DEFAULT_TEMPLATE)) templates.set(DEFAULT_TEMPLATE, first);
  return templates;
}

/** How GGUF has them: the default by itself, others by keys of which a list says the names. */
export function chatTemplateEntries(templates: ReadonlyMap<string, string>): (readonly [string, GgufValue])[] {
  const standard = templates.get(DEFAULT_TEMPLATE);
  const others = [...templates].filter(([name]) => name !== DEFAULT_TEMPLATE);
  const named = [...new Map(others.map(([name, text]) => [name.replace(/[^a-zA-Z0-9]/g, "_"), text]))];
  return [
    ...(standard === undefined ? [] : [["tokenizer.chat_template", gguf.string(standard)] as const]),
    ...(named.length === 0 ? [] : [["tokenizer.chat_templates", gguf.strings(named.map(([name]) => name))] as const]),
    ...named.map(([name, text]) => [`tokenizer.chat_template.${name}`, gguf.string(text)] as const),
  ];
}

/** A file's chat templates as tokenizer_config.json has them: the default alone, or a list of all by their names. */
export function storedChatTemplates(
  metadata: GgufMetadata,
): string | readonly Readonly<Record<string, string>>[] | undefined {
  const textAt = (key: string): string | undefined => {
    const value = metadata.get(key)?.value;
    return typeof value === "string" ? value : undefined;
  };
  const standard = textAt("tokenizer.chat_template");
  const names = [metadata.get("tokenizer.chat_templates")?.value].flat().filter((name) => typeof name === "string");
  const named = [...new Set(names)].flatMap((name) => {
    const template = textAt(`tokenizer.chat_template.${name}`);
    return template === undefined || name === DEFAULT_TEMPLATE ? [] : [{ name, template }];
  });
  if (named.length === 0) return standard;
  return standard === undefined ? named : [{ name: DEFAULT_TEMPLATE, template: standard }, ...named];
}
