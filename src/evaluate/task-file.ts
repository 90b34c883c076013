import { existsSync, readFileSync } from "node:fs";
import path from "node:path";
import { fileURLToPath } from "node:url";
import { createJiti } from "jiti";
import { z } from "zod";
import { FormatError, UsageError } from "../system/errors.js";
import { describeSchemaError } from "../system/schema.js";
import { choices, generation, lastWord, multipleChoice, wholeText } from "./kinds.js";
import { mean, rougeL } from "./metrics.js";
import { countWords, trim } from "./python-text.js";
import type { Task } from "./task.js";
import { rowTemplate } from "./template.js";

/** A user's own benchmark: a JSON file of templates, or a module whose default export is a task. */

const name = z.string().regex(/^[\w.-]+$/, "letters, digits, _, - and . only");
/** A Jinja template, whose variables are the row's columns. */
const template = z.string();

const common = {
  name,
  version: z.number().default(1),
  /** A file beside the task file, a directory of CONFIG/SPLIT.jsonl, or a dataset on the hub. */
  data: z.string(),
  config: z.string().optional(),
  splits: z
    .object({
      train: z.string().optional(),
      validation: z.string().optional(),
      test: z.string().optional(),
      fewShot: z.string().optional(),
    })
    .default({ test: "test" }),
  fewShot: z.number().int().min(0).default(0),
  fewShotSampler: z.enum(["random", "first"]).default("random"),
  description: z.string().optional(),
};
const schema = z.discriminatedUnion("kind", [
  z.strictObject({
    ...common,
    kind: z.literal("multiple-choice"),
    prompt: template,
    /** Templates, or the name of the column that lists the texts. */
    choices: z.union([z.string(), z.array(template).min(2)]),
    /** A template or the name of a column: the right choice's index, text or letter. */
    answer: template,
    /** What the answer is; by default a number is an index, and a text that of a choice, an index, or a letter. */
    answerIs: z.enum(["index", "text", "letter"]).optional(),
    metrics: z.array(z.enum(["acc", "acc_norm"])).default(["acc", "acc_norm"]),
  }),
  z.strictObject({
    ...common,
    kind: z.literal("generation"),
    prompt: template,
    answer: template,
    until: z.array(z.string()).default(["\n"]),
    maxTokens: z.number().int().min(1).max(65_536).optional(),
    /** A regular expression: the first group of its last match in the generated text is compared. */
    extract: z.string().max(1000).optional(),
    metrics: z
      .array(z.enum(["exact_match", "rouge_l"]))
      .min(1)
      .default(["exact_match"]),
  }),
  z.strictObject({ ...common, kind: z.literal("last-word"), context: template, continuation: template }),
  z.strictObject({ ...common, kind: z.literal("text"), text: template }),
]);
type TaskJson = z.infer<typeof schema>;

const row = z.record(z.string(), z.unknown());
type Row = z.infer<typeof row>;

const MODULES = [".js", ".mjs", ".ts", ".mts"];
/** Task modules import this very program, wherever they lie. */
const OWN_MODULES = {
  "coppice/evaluate": fileURLToPath(
    new URL(import.meta.url.endsWith(".ts") ? "./index.ts" : "./index.js", import.meta.url),
  ),
  zod: fileURLToPath(import.meta.resolve("zod")),
};

/**
 * Reads a task file. A module, JavaScript or TypeScript, exports any {@link Task} by default and may import `coppice/evaluate`.
 * @returns undefined when there is no such file
 * @throws UsageError when the file is missing, FormatError naming the field that is wrong
 */
export async function loadTaskFile(file: string): Promise<Task | undefined> {
  const extension = path.extname(file);
  if (extension !== ".json" && !MODULES.includes(extension)) return undefined;
  if (!existsSync(file)) throw new UsageError(`there is no task file ${file}`);
  if (extension !== ".json") return taskOfModule(file);
  let json: unknown;
  try {
    json = JSON.parse(readFileSync(file, "utf8"));
  } catch (error) {
    throw new FormatError(`${file} is not valid JSON (${error instanceof Error ? error.message : error})`);
  }
  const parsed = schema.safeParse(json);
  if (!parsed.success) throw new FormatError(`${file}: ${describeSchemaError(parsed.error, json)}`);
  return taskOf(parsed.data, file);
}

async function taskOfModule(file: string): Promise<Task> {
  let task: Partial<Task> | undefined;
  try {
    task = await createJiti(import.meta.url, { alias: OWN_MODULES }).import(path.resolve(file), { default: true });
  } catch (error) {
    throw new FormatError(`${file} cannot be loaded as a task: ${error instanceof Error ? error.message : error}`);
  }
  if (typeof task?.name !== "string" || typeof task.read !== "function" || task.dataset === undefined)
    throw new FormatError(
      `${file}: its default export is not a task; make one with multipleChoice, generation or the like`,
    );
  return task as Task;
}

function taskOf(json: TaskJson, file: string): Task {
  const beside = path.resolve(path.dirname(file), json.data);
  const facts = {
    name: json.name,
    version: json.version,
    schema: row,
    dataset: { repo: existsSync(beside) ? beside : json.data, config: json.config },
    splits: Object.fromEntries(Object.entries(json.splits).filter(([, split]) => split !== undefined)),
    fewShot: {
      count: json.fewShot,
      sampler: json.fewShotSampler,
      description: json.description,
    },
  };
  const text = (source: string) => rowTemplate(source, file);
  switch (json.kind) {
    case "multiple-choice": {
      const [prompt, answer] = [text(json.prompt), columnOf(json.answer, file)];
      const list = typeof json.choices === "string" ? columnOf(json.choices, file) : undefined;
      const listed = typeof json.choices === "string" ? [] : json.choices.map(text);
      const choicesOf = (r: Row): string[] =>
        list === undefined ? listed.map((render) => render(r)) : listOfChoices(list(r), file);
      return multipleChoice({
        ...facts,
        options: (r) => choices(prompt(r), choicesOf(r)),
        right: (r) => [indexOfAnswer(answer(r), choicesOf(r), json)],
        metrics: json.metrics,
      });
    }
    case "generation": {
      const [prompt, answer] = [text(json.prompt), text(json.answer)];
      const judges = judgesOf(json.extract, file);
      return generation({
        ...facts,
        prompt,
        answer,
        until: json.until,
        maxTokens: json.maxTokens,
        metrics: json.metrics.map((metric) => mean(metric)),
        judge: (generated, r) => json.metrics.map((metric) => judges[metric](generated, answer(r))),
      });
    }
    case "last-word": {
      const continuation = text(json.continuation);
      const written = (r: Row): string => {
        const word = continuation(r);
        if (word.trim() === "") throw new FormatError(`${file}: a row has nothing to continue with`);
        return word;
      };
      return lastWord({ ...facts, context: text(json.context), continuation: written });
    }
    case "text": {
      const whole = text(json.text);
      return wholeText({
        ...facts,
        text: whole,
        words: (r) => countWords(whole(r)),
        bytes: (r) => Buffer.byteLength(whole(r)),
      });
    }
  }
}

/** The metrics of generated text. @param extract the expression whose match is compared; the whole text by default */
function judgesOf(extract: string | undefined, file: string) {
  const pattern = extract === undefined ? undefined : expression(extract, file);
  const extracted = (text: string) => {
    if (pattern === undefined) return trim(text);
    const match = [...text.matchAll(pattern)].at(-1);
    return trim(match?.[1] ?? match?.[0] ?? "");
  };
  return {
    exact_match: (text: string, reference: string) => (extracted(text) === trim(reference) ? 1 : 0),
    rouge_l: (text: string, reference: string) => rougeL(reference, extracted(text)),
  };
}

/** The value of a column (`answer`, `choices.text`, also in braces) in its own type, or a template's text. */
function columnOf(source: string, file: string): (row: Row) => unknown {
  const [, columns] = /^\s*(?:\{\{)?\s*([\w.]+)\s*(?:\}\})?\s*$/.exec(source) ?? [];
  if (columns === undefined) return rowTemplate(source, file);
  return (r) =>
    columns
      .split(".")
      .reduce<unknown>((value, key) => (Object.hasOwn(Object(value), key) ? Object(value)[key] : undefined), r);
}

function expression(source: string, file: string): RegExp {
  try {
    return new RegExp(source, "g");
  } catch (error) {
    throw new FormatError(`${file}: extract: ${error instanceof Error ? error.message : error}`);
  }
}

/** Texts of choices in a row. @throws FormatError when they are none */
function listOfChoices(value: unknown, file: string): string[] {
  const parsed = z
    .array(z.union([z.string(), z.number(), z.boolean()]))
    .nonempty()
    .safeParse(value);
  if (!parsed.success)
    throw new FormatError(`${file}: choices must be a list of texts, not ${JSON.stringify(value)?.slice(0, 100)}`);
  return parsed.data.map(String);
}

/**
 * The index that an answer means: the number itself, or the index of its text or letter.
 * @throws FormatError when it means none, or one as an index and another as a text
 */
function indexOfAnswer(
  answer: unknown,
  listed: readonly string[],
  { name: task, answerIs }: Pick<TaskJson & { readonly kind: "multiple-choice" }, "name" | "answerIs">,
): number {
  const text = trim(String(answer));
  const meanings = {
    index: /^\d+$/.test(text) ? Number(text) : -1,
    text: listed.findIndex((choice) => trim(choice) === text),
    letter: /^[A-Z]$/.test(text) ? text.charCodeAt(0) - 65 : -1,
  };
  const valid = (index: number) => index >= 0 && index < listed.length;
  const kinds = answerIs === undefined ? (["text", "index", "letter"] as const) : [answerIs];
  const possible =
    answerIs === undefined && typeof answer === "number"
      ? [meanings.index].filter(valid)
      : [...new Set(kinds.map((kind) => meanings[kind]).filter(valid))];
  const [index] = possible;
  if (index === undefined)
    throw new FormatError(`${task}: the answer ${JSON.stringify(answer)} is none of the ${listed.length} choices`);
  if (possible.length > 1)
    throw new FormatError(
      `${task}: the answer ${JSON.stringify(answer)} is a choice's text, and the index or letter of another: say which with "answerIs"`,
    );
  return index;
}
