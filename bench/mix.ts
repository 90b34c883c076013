/**
 * The types chosen for a size beside llama.cpp's mixtures at the same size: perplexity, and divergence from the unquantized model. Both with
 * the same importances.
 *
 *     npx tsx bench/mix.ts --model MODEL --data TEXT --validation TEXT [--types q2_k,iq3_xxs,q3_k_m,iq4_xs,q4_k_m]
 */
import { statSync } from "node:fs";
import path from "node:path";
import { parseArgs } from "node:util";
import { quantize } from "../src/index.js";
import { parseFileKind } from "../src/quantize/index.js";
import { writeJson } from "../src/system/files.js";
import { markdown } from "./lines.js";

const { values } = parseArgs({
  options: {
    model: { type: "string" },
    data: { type: "string" },
    validation: { type: "string" },
    types: { type: "string", default: "q2_k,iq3_xxs,q3_k_m,iq4_xs,q4_k_m" },
    "sequence-length": { type: "string", default: "256" },
    threads: { type: "string", default: "2" },
    dir: { type: "string", default: "/tmp/coppice-mix" },
    out: { type: "string", default: "bench/results/mix.json" },
  },
});
const { model, data, validation } = values;
if (model === undefined || data === undefined || validation === undefined)
  throw new Error("--model, --data and --validation are needed");

const common = {
  model,
  data: [data],
  validation: [validation],
  report: true,
  device: "cpu" as const,
  threads: Number(values.threads),
  sequenceLength: Number(values["sequence-length"]),
  importanceFile: path.join(values.dir, "importance.safetensors"),
};
const types = values.types.split(",").map(parseFileKind);
const stock = await quantize({ ...common, types, out: path.join(values.dir, "stock") });
const rows = [];
for (const recipe of stock.files) {
  const sizeBytes = recipe.files.reduce((sum, file) => sum + statSync(file).size, 0);
  const { files } = await quantize({ ...common, sizeBytes, out: path.join(values.dir, `mix-${recipe.name}.gguf`) });
  const [mix] = files;
  if (mix?.report === undefined || recipe.report === undefined) throw new Error("nothing was measured");
  rows.push({
    name: recipe.name,
    stock: { bytes: recipe.fileBytes, ...recipe.report },
    mix: { bytes: mix.fileBytes, ...mix.report, types: mix.types },
  });
  process.stderr.write(`${recipe.name}\n`);
}
writeJson(values.out, { unquantized: stock.original, rows });
console.log(`unquantized: perplexity ${stock.original?.perplexity.toFixed(4)}\n`);
console.log(
  markdown(
    [
      "size of",
      "bytes: llama.cpp's mixture",
      "ours",
      "perplexity: llama.cpp's",
      "ours",
      "KL, nats/token: llama.cpp's",
      "ours",
      "ratio",
    ],
    rows.map(({ name, stock: a, mix: b }) => [
      name,
      a.bytes,
      b.bytes,
      a.perplexity.toFixed(4),
      b.perplexity.toFixed(4),
      a.divergence.toExponential(2),
      b.divergence.toExponential(2),
      (b.divergence / a.divergence).toFixed(2),
    ]),
  ),
);
