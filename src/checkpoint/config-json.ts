import { readFileSync } from "node:fs";
import { writeFileAtomic } from "../system/files.js";
import { readJsonObject } from "./json.js";

/**
 * Configurations as Python writes them. transformers tells 30 from 30.0, and refuses a whole number in a field of its that is a
 * float; JavaScript does not. So the names of fields whose numbers have a point are kept beside the values, under a symbol, which
 * copies of a configuration take along.
 */
const FLOATS = Symbol("fields that hold floats");

type Config = Readonly<Record<string, unknown>> & { readonly [FLOATS]?: readonly string[] | undefined };

/** Fields that transformers wants as floats, for configurations that were not read from a file of its. */
const KNOWN_FLOATS: readonly string[] = [
  "attention_multiplier",
  "attn_logit_softcapping",
  "embedding_multiplier",
  "final_logit_softcapping",
  "logits_scaling",
  "partial_rotary_factor",
  "residual_multiplier",
  "rotary_pct",
];

/** Reads a `config.json`. @throws FormatError when it is not a JSON object */
export function readConfigJson(file: string): Record<string, unknown> {
  const config = readJsonObject(file);
  const fields = readFileSync(file, "utf8").matchAll(
    /"(\w+)"\s*:\s*-?\d+(?:\.\d+(?:[eE][+-]?\d+)?|[eE][+-]?\d+)\s*[,}\]\n]/g,
  );
  return Object.assign(config, { [FLOATS]: [...new Set([...fields].map(([, name = ""]) => name))] });
}

/** A configuration as text, with a point in the numbers of fields that hold floats. */
export function configText(config: Config): string {
  const floats = new Set([...(config[FLOATS] ?? []), ...KNOWN_FLOATS]);
  const text = JSON.stringify(config, null, 2);
  return text.replace(/^( *"(\w+)": -?\d+)(,?)$/gm, (line, field, name, comma) =>
    floats.has(name) ? `${field}.0${comma}` : line,
  );
}

/** Writes a `config.json`, atomically. */
export const writeConfigJson = (file: string, config: Config): void => writeFileAtomic(file, `${configText(config)}\n`);
