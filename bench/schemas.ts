/**
 * What becomes of JSON Schemas that people have written: how many are compiled to a grammar, strict and not, and whether all that a
 * grammar lets through is valid by ajv. For JSONSchemaBench (https://github.com/guidance-ai/jsonschemabench, arXiv 2501.10868) and any
 * other folder of folders of .json files.
 *
 *   npx tsx bench/schemas.ts --data /path/to/jsonschemabench/data [--samples 4] [--failures 3]
 */
import { readdirSync, readFileSync } from "node:fs";
import path from "node:path";
import { parseArgs } from "node:util";
import { Ajv, type ValidateFunction } from "ajv";
import { Ajv2019 } from "ajv/dist/2019.js";
import { Ajv2020 } from "ajv/dist/2020.js";
import Table from "cli-table3";
import type { ApiError } from "../src/serve/errors.js";
import { Random } from "../src/system/random.js";
import { compiled, GrammarSamples } from "../test/grammar-samples.js";

const { values } = parseArgs({
  options: {
    data: { type: "string" },
    samples: { type: "string", default: "4" },
    failures: { type: "string", default: "3" },
  },
});
if (values.data === undefined) throw new Error("--data names the folder of the schemas");
const [samples, mostFailures] = [Number(values.samples), Number(values.failures)];
const options = { strict: false, validateFormats: false, logger: false, addUsedSchema: false } as const;

/** How a schema's values are checked, where ajv takes it. */
function validatorOf(schema: object): ValidateFunction | undefined {
  const { $schema } = schema as { readonly $schema?: unknown };
  const draft = `${$schema ?? ""}`;
  const { id: _, $id: __, $schema: ___, ...own } = schema as Record<string, unknown>;
  try {
    const ajv = draft.includes("2020")
      ? new Ajv2020(options)
      : draft.includes("2019")
        ? new Ajv2019(options)
        : new Ajv(options);
    return ajv.compile(own);
  } catch {
    return undefined; // refers to elsewhere, or is no schema
  }
}

const table = new Table({
  head: ["folder", "schemas", "strict", "not strict", "checked", "valid outputs", "ms a schema"],
});
const sums = { schemas: 0, strict: 0, loose: 0, checked: 0, outputs: 0, valid: 0 };
const reasons = new Map<string, number>();
for (const folder of readdirSync(values.data).sort()) {
  const here = { schemas: 0, strict: 0, loose: 0, checked: 0, outputs: 0, valid: 0 };
  const random = new Random(1);
  let seconds = 0;
  for (const name of readdirSync(path.join(values.data, folder)).filter((file) => file.endsWith(".json"))) {
    const schema: unknown = JSON.parse(readFileSync(path.join(values.data, folder, name), "utf8"));
    if (typeof schema !== "object" || schema === null) continue;
    here.schemas++;
    const began = performance.now();
    const [strict, loose] = [compiled(schema, true), compiled(schema, false)];
    seconds += (performance.now() - began) / 1000;
    if (typeof loose === "string") here.loose++;
    else reasons.set(reasonOf(loose), (reasons.get(reasonOf(loose)) ?? 0) + 1);
    if (typeof strict !== "string") continue;
    here.strict++;
    const valid = validatorOf(schema);
    if (valid === undefined) continue;
    here.checked++;
    const drawn = new GrammarSamples(strict);
    for (let i = 0; i < samples; i++) {
      here.outputs++;
      let text: string;
      try {
        text = drawn.draw(random, i % 2 === 0 ? 12 : 4);
      } catch (error) {
        console.error(`${folder}/${name}: ${error}`); // nothing that ends
        break;
      }
      if (valid(JSON.parse(text))) here.valid++;
      else if (here.outputs - here.valid <= mostFailures)
        console.error(`${folder}/${name}: ${text.slice(0, 200)}: ${JSON.stringify(valid.errors?.[0])}`);
    }
  }
  table.push(rowOf(folder, here, seconds));
  for (const key of Object.keys(sums) as (keyof typeof sums)[]) sums[key] += here[key];
}
table.push(rowOf("all", sums, undefined));
console.log(table.toString());
console.log("refused, though not strict:");
for (const [reason, count] of [...reasons].sort((a, b) => b[1] - a[1]).slice(0, 20))
  console.log(`  ${count}  ${reason}`);

/** A refusal without what is the schema's own. */
function reasonOf({ message }: ApiError): string {
  return message.replace(/^[^:]*: /, "").replace(/"[^"]*"|\d+/g, "…");
}

function rowOf(name: string, counts: typeof sums, seconds: number | undefined): string[] {
  const share = (part: number, whole: number) => (whole === 0 ? "-" : `${((100 * part) / whole).toFixed(1)} %`);
  const { schemas, strict, loose, checked, outputs, valid } = counts;
  return [
    name,
    `${schemas}`,
    share(strict, schemas),
    share(loose, schemas),
    `${checked}`,
    `${valid} of ${outputs}`,
    seconds === undefined ? "" : ((1000 * seconds) / Math.max(1, schemas)).toFixed(1),
  ];
}
