import { readFileSync } from "node:fs";
import { FormatError } from "../system/errors.js";
import { writeFileAtomic } from "../system/files.js";
import { readJsonObject } from "./json.js";

/**
 * Configurations as Python writes them. transformers distinguishes 30 from 30.0 and rejects an integer in a float field; JavaScript
 * has one type for both. So the names of fields whose numbers have a decimal point are kept beside the values, under a symbol, which
 * copies of a configuration carry along.
 */
const FLOATS = Symbol("fields that hold floats");

type Config = Readonly<Record<string, unknown>> & { readonly [FLOATS]?: readonly string[] | undefined };

/** Fields that transformers requires to be floats, for configurations that it did not write. */
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

/** How deep a configuration may nest; writing a much deeper one would overflow the stack. */
const MAX_DEPTH = 200;

function checkDepth(file: string, config: object): void {
  let level: object[] = [config];
  for (let depth = 0; level.length > 0; depth++) {
    if (depth > MAX_DEPTH)
      throw new FormatError(`${file} nests more than ${MAX_DEPTH} objects and lists in each other`);
    level = level.flatMap((value) =>
      Object.values(value).filter((inner) => typeof inner === "object" && inner !== null),
    );
  }
}

/** Reads a `config.json`. @throws FormatError when it is not a JSON object, or nests too deep */
export function readConfigJson(file: string): Record<string, unknown> {
  const config = readJsonObject(file);
  checkDepth(file, config);
  const fields = readFileSync(file, "utf8").matchAll(
    /"(\w+)"\s*:\s*-?\d+(?:\.\d+(?:[eE][+-]?\d+)?|[eE][+-]?\d+)\s*[,}\]\n]/g,
  );
  return Object.assign(config, { [FLOATS]: [...new Set([...fields].map(([, name = ""]) => name))] });
}

/** A configuration as JSON, with a decimal point in the numbers of float fields. */
export function configText(config: Config): string {
  const floats = new Set([...(config[FLOATS] ?? []), ...KNOWN_FLOATS]);
  const text = JSON.stringify(config, null, 2);
  return text.replace(/^( *"(\w+)": -?\d+)(,?)$/gm, (line, field, name, comma) =>
    floats.has(name) ? `${field}.0${comma}` : line,
  );
}

/** Writes a `config.json`, atomically. */
export const writeConfigJson = (file: string, config: Config): void => writeFileAtomic(file, `${configText(config)}\n`);
