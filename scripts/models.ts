/**
 * Writes docs/models.md and the README's table from the registry and the fixtures of its contract, and puts the example's
 * file into docs/adding-a-model.md. Tests compare all three with what this would write.
 *
 *     npx tsx scripts/models.ts
 */
import { readFileSync, writeFileSync } from "node:fs";
import path from "node:path";
import { pathToFileURL } from "node:url";
import { ARCHITECTURES, type Model, openCheckpoint } from "../src/models/index.js";
import { models, withoutFixture } from "../test/models/architectures.js";
import { markdownTable } from "./markdown.js";

const root = path.resolve(import.meta.dirname, "..");
const EXAMPLE = "src/models/architectures/arcee.ts";

const code = (names: readonly string[]): string => names.map((name) => `\`${name}\``).join(", ");

function table(): string {
  const fixtures = models.map(({ name, directory }) => ({ name, model: openCheckpoint(directory).model }));
  const rows = ARCHITECTURES.map(({ name, families, modelTypes, gguf }) => {
    const own = fixtures.filter(({ model }) => model.architecture === name);
    const axesOf = (fixture: (typeof own)[number]) => fixture.model.axes.map((axis) => axis.name).join(", ");
    const usual = own[0] === undefined ? "" : axesOf(own[0]);
    // some configurations of a family allow less than others
    const others = own.flatMap((one) => (axesOf(one) === usual ? [] : [`${axesOf(one)} (${one.name})`]));
    const axes = [usual, ...others].join("; ");
    const written = [...new Set([...gguf.architectures, ...own.flatMap(({ model }) => ggufName(model))])];
    return [families, code(modelTypes), code(written), axes, own.map((one) => one.name).join(", ")];
  });
  const head = ["models", "`model_type`", "GGUF", "axes that can be cut", "tested as"];
  return markdownTable([head, ...rows]);
}

/** What a model's files are called in GGUF, where llama.cpp has a graph for it. */
function ggufName(model: Model): string[] {
  try {
    return [model.gguf().architecture];
  } catch {
    return [];
  }
}

/** What `test/models/contract.test.ts` and `contract-files.test.ts` check. */
const CONTRACT: readonly (readonly string[])[] = [
  ["check", "must match"],
  ["logits, with kernels of every variant and without", "transformers', within 1e-5 of the largest"],
  ["gradients, with kernels and without", "the slope of the loss along random directions in all parameters"],
  ["each axis cut, then all at once; written and opened again", "transformers' logits for those files, within 1e-5"],
  ["files written again", "the same bits as before"],
  [
    "GGUF",
    "llama.cpp's logits within 1e-4 of the largest (1e-2 and 3e-3 where its GELU is a table of 16-bit numbers), 200 greedy tokens; where its release has no graph, an error that says why",
  ],
  ["GGUF read back", "the same bits and sizes as before"],
  ["distillation into a pruned copy", "closer to the teacher after 20 steps"],
];

/** The text of docs/models.md. */
export const modelsPage = (): string => `# Supported models

Every model in this table opens from a Hugging Face directory, a hub id or a GGUF file, and works with every command: \`inspect\`, \`plan\`, \`prune\`,
\`distill\`, \`compress\`, \`evaluate\`, \`perplexity\`, \`export\`, \`quantize\`, \`generate\`, \`chat\`, \`serve\`. GGUF files of other architectures can be inspected, run,
served, evaluated with llama.cpp and quantized.

${table()}

Of multimodal models (Gemma 3, Ministral 3, Mistral Small 3) Coppice works on the language model. All other tensors are carried along unchanged, except
that the projector is cut to the new width.

## The contract

Each architecture has at least one small model with random weights, made by transformers (\`bench/peers/make_architecture_fixtures.py\`), in which every feature
matters: switching one off changes the logits by more than 1 %. \`npm test\` runs the same checks on each (\`test/models/contract.test.ts\`,
\`contract-files.test.ts\`):

${markdownTable(CONTRACT)}

Some features are missing from llama.cpp's graphs: the windows of Mistral, Phi-3, Qwen 2 and StarCoder 2, dynamic rotary scaling, YaRN's betas. Exporting a model that
has them prints a note.

This page is written by \`npx tsx scripts/models.ts\` from the registry. [Adding a model](adding-a-model.md) explains how to add a row.
`;

/** The README with its table of models as it should be. */
export function readmePage(): string {
  const page = readFileSync(path.join(root, "README.md"), "utf8");
  const rows = ARCHITECTURES.map(({ families, modelTypes }) => [families, code(modelTypes)]);
  const written = markdownTable([["models", "`model_type`"], ...rows]);
  return page.replace(/(<!-- Written by [^\n]*models\.ts[^\n]* -->\n)[\s\S]*?(<!-- \/models -->)/, (_, start, end) =>
    [start, written, "", end].join("\n"),
  );
}

/** docs/adding-a-model.md with the example's file as it is. */
export function addingPage(): string {
  const page = readFileSync(path.join(root, "docs/adding-a-model.md"), "utf8");
  const file = readFileSync(path.join(root, EXAMPLE), "utf8");
  return page.replace(/```ts\n[\s\S]*?```/, () => `\`\`\`ts\n${file}\`\`\``);
}

if (process.argv[1] !== undefined && import.meta.url === pathToFileURL(process.argv[1]).href) {
  writeFileSync(path.join(root, "docs/models.md"), modelsPage());
  writeFileSync(path.join(root, "docs/adding-a-model.md"), addingPage());
  writeFileSync(path.join(root, "README.md"), readmePage());
  for (const message of withoutFixture()) console.warn(`warning: ${message}`);
}
