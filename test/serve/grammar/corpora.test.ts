import { readFileSync } from "node:fs";
import { createRequire } from "node:module";
import path from "node:path";
import { Ajv2020 } from "ajv/dist/2020.js";
import type { Llama } from "node-llama-cpp";
import { beforeAll, describe, expect, it } from "vitest";
import { z } from "zod";
import { startLlama } from "../../../src/generate/start-llama.js";
import { Random } from "../../../src/system/random.js";
import { compiled, GrammarSamples } from "../../grammar-samples.js";
import { zodTypes } from "./zod-types.js";

let llama: Llama;
beforeAll(async () => {
  llama = await startLlama("cpu");
});
const ajv = new Ajv2020({ strict: false, validateFormats: false, logger: false });

/** Texts that a grammar lets through; llama.cpp reads it as we do. */
async function samples(grammar: string, count: number): Promise<string[]> {
  const compiled = (await llama.createGrammar({ grammar })) as unknown as { _testText(text: string): boolean };
  const [drawn, random] = [new GrammarSamples(grammar), new Random(1)];
  const texts = Array.from({ length: count }, (_, i) => drawn.draw(random, i % 2 === 0 ? 12 : 4));
  for (const text of texts) expect(compiled._testText(text), text).toBe(true);
  return texts;
}

describe("the types of zod 4", () => {
  const schemas = Object.entries(zodTypes).map(([name, type]) => ({ name, type, schema: z.toJSONSchema(type) }));

  it("are all taken, strict or not, and what is let through is valid", async () => {
    for (const { name, type, schema } of schemas) {
      const grammar = compiled(schema, true);
      expect(grammar, name).toBeTypeOf("string");
      expect(compiled(schema, false), name).toBe(grammar);
      const valid = ajv.compile(schema);
      for (const text of await samples(`${grammar}`, 8)) {
        const value: unknown = JSON.parse(text);
        expect(valid(value), `${name}: ${text}`).toBe(true);
        expect(type.safeParse(value).success, `${name}: ${text}`).toBe(true);
      }
    }
  });
});

describe("the types of pydantic 2", () => {
  const file = path.resolve(import.meta.dirname, "../../fixtures/schemas/pydantic.json");
  const schemas = Object.entries(JSON.parse(readFileSync(file, "utf8")) as Record<string, object>);

  it("are all taken, strict all but sets, and what is let through is valid", async () => {
    const refused: string[] = [];
    for (const [name, schema] of schemas) {
      const loose = compiled(schema, false);
      expect(loose, name).toBeTypeOf("string");
      await samples(`${loose}`, 2);
      const grammar = compiled(schema, true);
      if (typeof grammar !== "string") {
        refused.push(`${name} ${grammar.message}`);
        continue;
      }
      const valid = ajv.compile(schema);
      for (const text of await samples(grammar, 8)) expect(valid(JSON.parse(text)), `${name}: ${text}`).toBe(true);
    }
    expect(refused.filter((why) => !why.includes("uniqueItems"))).toEqual([]);
    expect(schemas.length - refused.length).toBeGreaterThan(200);
  });
});

describe("the JSON Schema Test Suite", () => {
  interface Group {
    readonly description: string;
    readonly schema: unknown;
    readonly tests: readonly { readonly data: unknown; readonly valid: boolean; readonly description: string }[];
  }
  const suite = createRequire(import.meta.url)("json-schema-test-suite") as {
    draft4(): readonly { readonly optional: boolean; readonly schemas: readonly Group[] }[];
  };
  const groups = suite.draft4().flatMap((file) => (file.optional ? [] : file.schemas));

  it("is taken, and of a strict schema nothing is let through that is not valid", async () => {
    let strict = 0;
    for (const { description, schema, tests } of groups) {
      expect(compiled(schema, false), description).toBeTypeOf("string");
      const grammar = compiled(schema, true);
      if (typeof grammar !== "string") continue;
      strict++;
      const parsed = (await llama.createGrammar({ grammar })) as unknown as { _testText(text: string): boolean };
      for (const { data, valid, description: what } of tests)
        if (!valid) expect(parsed._testText(JSON.stringify(data)), `${description}: ${what}`).toBe(false);
    }
    expect(groups.length).toBeGreaterThan(70);
    expect(strict / groups.length).toBeGreaterThan(0.7);
  });
});
