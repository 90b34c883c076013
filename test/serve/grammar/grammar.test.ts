import { Ajv } from "ajv";
import fc from "fast-check";
import type { Llama } from "node-llama-cpp";
import { beforeAll, describe, expect, it } from "vitest";
import { startLlama } from "../../../src/generate/start-llama.js";
import { callStyle, callsGrammar } from "../../../src/serve/engine/tools.js";
import { callsOrForm, formatGrammar } from "../../../src/serve/engine/write-task.js";
import { checkGrammar, GrammarRules, regexBody } from "../../../src/serve/grammar/index.js";
import { jsonGrammar } from "../../grammar-samples.js";

let llama: Llama;
beforeAll(async () => {
  llama = await startLlama("cpu");
});

/** Whether llama.cpp takes texts by a grammar. */
async function takes(grammar: string): Promise<(text: string) => boolean> {
  checkGrammar(grammar, "grammar");
  const compiled = (await llama.createGrammar({ grammar })) as unknown as { _testText(text: string): boolean };
  return (text) => compiled._testText(text);
}

const strict = { param: "schema", isStrict: true };

it.each([
  [{ minimum: 1e15, maximum: 2e15 }, ["1000000000000000", "1999999999999999"], ["5", "-3", "2000000000000001"]],
  [{ minimum: 1e18 }, ["1000000000000000000", "123456789012345678901"], ["999999999999999999", "7"]],
  [{ maximum: -1e15 }, ["-1000000000000000"], ["7", "-999999999999999"]],
] as const)("large bounds of whole numbers hold: %j", async (bounds, good, bad) => {
  const accepts = await takes(jsonGrammar({ type: "integer", ...bounds }, strict));
  for (const text of good) expect(accepts(text), text).toBe(true);
  for (const text of bad) expect(accepts(text), text).toBe(false);
});

it("bounds that no grammar can write are refused where strict", () => {
  expect(() => jsonGrammar({ type: "integer", minimum: 1e22 }, strict)).toThrow(/bounds too large/);
  expect(jsonGrammar({ type: "number", maximum: Number.MAX_VALUE }, strict)).toContain("root");
});

it("calls that are a name and arguments follow the tool's schema, with ids where the template has them", async () => {
  const parameters = { type: "object", properties: { city: { type: "string" } }, required: ["city"] };
  const tools = [{ name: "weather", parameters, strict: true }];
  const lima = '{"city":"Lima"}';
  const takesCalls = (template: string, parallel: boolean) => takes(callsGrammar(tools, callStyle(template), parallel));
  const plain = await takesCalls("[TOOL_CALLS][ARGS]", true);
  expect(plain(`weather[ARGS]${lima}`)).toBe(true);
  expect(plain(`weather[ARGS]${lima}[TOOL_CALLS]weather[ARGS]${lima}`)).toBe(true);
  for (const text of [`time[ARGS]${lima}`, "weather[ARGS]{}", `[{"name":"weather","arguments":${lima}}]`])
    expect(plain(text), text).toBe(false);
  const withIds = await takesCalls("[TOOL_CALLS][CALL_ID][ARGS]", false);
  expect(withIds(`weather[CALL_ID]a1b2c3d4e[ARGS]${lima}`)).toBe(true);
  expect(withIds(`weather[ARGS]${lima}`)).toBe(false);
});

it("schemas that take for ever to read are refused", () => {
  const endless = {
    type: "object",
    properties: { [`${"a".repeat(40)}!`]: {} },
    patternProperties: { "^(a+)+$": {} },
  };
  expect(() => formatGrammar({ kind: "json", schema: endless, ...strict })).toThrow(/takes more than 1000 ms to read/);
});

it("an enum of many values is read at once", () => {
  const values = Array.from({ length: 20_000 }, (_, i) => `value ${i}`);
  expect(formatGrammar({ kind: "json", schema: { enum: values }, ...strict }).text).toContain("value 19999");
});

interface Case {
  readonly schema: Record<string, unknown>;
  readonly value: unknown;
}

/** Schemas, each with a value that it takes. */
const cases = fc.letrec<{ any: Case; leaf: Case; object: Case; array: Case; either: Case }>((tie) => ({
  leaf: fc.oneof(
    fc.constant({ schema: { type: "boolean" }, value: true }),
    fc.constant({ schema: { type: ["null", "integer"] }, value: null }),
    fc
      .record({
        min: fc.integer({ min: -2000, max: 2000 }),
        size: fc.nat(3000),
        at: fc.double({ min: 0, max: 1, noNaN: true }),
      })
      .map(({ min, size, at }) => ({
        schema: { type: "integer", minimum: min, maximum: min + size },
        value: min + Math.round(size * at),
      })),
    fc
      .record({ min: fc.integer({ min: -30, max: 30 }), size: fc.nat(50), at: fc.integer({ min: 0, max: 64 }) })
      .map(({ min, size, at }) => ({
        schema: { type: "number", minimum: min, maximum: min + size },
        value: min + (size * at) / 64,
      })),
    fc.string({ maxLength: 8, unit: "grapheme-ascii" }).map((value) => ({
      schema: { type: "string", minLength: Math.max(0, value.length - 1), maxLength: value.length + 1 },
      value,
    })),
    fc
      .constantFrom("ab1", "zz99", "q5")
      .map((value) => ({ schema: { type: "string", pattern: "^[a-z]+\\d{1,2}$" }, value })),
    fc
      .uniqueArray(fc.jsonValue({ maxDepth: 1 }), { minLength: 1, maxLength: 3, selector: JSON.stringify })
      .map((values) => ({
        schema: { enum: values },
        value: values[0],
      })),
  ),
  object: fc
    .array(
      fc.record({
        name: fc.constantFrom("a", "ab", "b", "", 'q"', "é"),
        of: tie("any"),
        required: fc.boolean(),
        present: fc.boolean(),
      }),
      { maxLength: 4 },
    )
    .chain((list) =>
      fc
        .constantFrom({}, { additionalProperties: false }, { additionalProperties: { type: "integer" } })
        .map((more) => {
          const named = [...new Map(list.map((one) => [one.name, one])).values()];
          const present = named.filter((one) => one.required || one.present);
          const extra = "additionalProperties" in more && more.additionalProperties !== false ? [["abc", 7]] : [];
          return {
            schema: {
              type: "object",
              properties: Object.fromEntries(named.map(({ name, of }) => [name, of.schema])),
              required: named.filter(({ required }) => required).map(({ name }) => name),
              ...more,
            },
            value: Object.fromEntries([...present.map(({ name, of }) => [name, of.value]), ...extra] as [
              string,
              unknown,
            ][]),
          };
        }),
    ),
  array: fc.record({ of: tie("any"), count: fc.nat(3) }).map(({ of, count }) => ({
    schema: { type: "array", items: of.schema, minItems: Math.max(0, count - 1), maxItems: count + 1 },
    value: Array.from({ length: count }, () => of.value),
  })),
  either: fc.record({ one: tie("leaf"), other: tie("leaf") }).map(({ one, other }) => ({
    schema: { anyOf: [one.schema, other.schema] },
    value: other.value,
  })),
  any: fc.oneof({ depthSize: "small" }, tie("leaf"), tie("object"), tie("array"), tie("either")),
}));

describe("a grammar for a JSON Schema", () => {
  const ajv = new Ajv({ strict: false, validateFormats: false });

  it("takes what the schema takes, and nothing that it does not", async () => {
    await fc.assert(
      fc.asyncProperty(cases.any, cases.any, fc.jsonValue({ maxDepth: 2 }), async (own, other, anything) => {
        // Ajv calls these members of the values that it compares
        fc.pre(!/"(valueOf|toString)":/.test(JSON.stringify([own, other, anything])));
        const [valid, accepted] = [ajv.compile(own.schema), await takes(jsonGrammar(own.schema, strict))];
        expect(valid(own.value)).toBe(true);
        expect(accepted(JSON.stringify(own.value)), JSON.stringify(own)).toBe(true);
        for (const value of [other.value, anything, [own.value], { a: own.value }])
          if (accepted(JSON.stringify(value))) expect(valid(value), JSON.stringify([own.schema, value])).toBe(true);
      }),
      { numRuns: 150 },
    );
  });

  it("takes blanks where JSON has them, references and recursion, and no half of a text", async () => {
    const schema = {
      $defs: { tree: { type: "object", properties: { left: { $ref: "#/$defs/tree" } }, required: [] } },
      type: "object",
      properties: { root: { $ref: "#/$defs/tree" }, when: { type: "string", format: "date-time" } },
      required: ["root"],
    };
    const accepted = await takes(jsonGrammar(schema, strict));
    expect(accepted('{\n  "root": {"left": {"left": {}}}, "when": "2026-11-24T10:00:00Z"}')).toBe(true);
    for (const text of ['{"root": {"left": 3}}', '{"root": {}', "{}", '{"root":{},"when":"2026-13-24T10:00:00Z"}'])
      expect(accepted(text), text).toBe(false);
    expect((await takes(jsonGrammar(undefined, strict)))('{"a": [1, -2.5e3, null, {"b": "\\u00e9"}]}')).toBe(true);
  });

  it("counts exactly, however long something may be", async () => {
    for (const [min, max] of [
      [0, 10_000],
      [777, 1234],
      [513, undefined],
    ] as const) {
      const texts = await takes(jsonGrammar({ type: "string", minLength: min, maxLength: max }, strict));
      for (const length of [min - 1, min, min + 1, 999, (max ?? 2000) - 1, max ?? 2000, (max ?? 2000) + 1])
        if (length >= 0)
          expect(texts(JSON.stringify("x".repeat(length))), `${min} ${max} ${length}`).toBe(
            length >= min && length <= (max ?? length),
          );
    }
    const lists = await takes(jsonGrammar({ items: { type: "boolean" }, minItems: 1, maxItems: 600 }, strict));
    for (const length of [0, 1, 99, 100, 600, 601])
      expect(lists(JSON.stringify(Array.from({ length }, () => true)))).toBe(length >= 1 && length <= 600);
  });

  it("takes numbers within bounds of any kind, and nothing beyond", async () => {
    const bounds = fc.record({
      low: fc.integer({ min: -3000, max: 3000 }),
      size: fc.integer({ min: 1, max: 4000 }),
      decimals: fc.nat(3),
      exclusive: fc.boolean(),
      values: fc.array(fc.double({ min: -0.2, max: 1.2, noNaN: true }), { maxLength: 8 }),
    });
    await fc.assert(
      fc.asyncProperty(bounds, async ({ low, size, decimals, exclusive, values }) => {
        const [from, to] = [low / 10 ** decimals, (low + size) / 10 ** decimals];
        const schema = exclusive
          ? { type: "number", exclusiveMinimum: from, exclusiveMaximum: to }
          : { type: "number", minimum: from, maximum: to };
        const accepted = await takes(jsonGrammar(schema, strict));
        const valid = ajv.compile(schema);
        for (const share of [...values, 0, 1, 0.5]) {
          const value = Number((from + share * (to - from)).toFixed(Math.max(2, decimals)));
          const text = `${value === 0 ? 0 : value}`;
          if (!text.includes("e")) expect(accepted(text), `${JSON.stringify(schema)} ${text}`).toBe(valid(value));
        }
      }),
      { numRuns: 100 },
    );
  });

  it("is refused where it needs itself without end, and not where that is optional", async () => {
    const endless = {
      $defs: { node: { type: "object", properties: { next: { $ref: "#/$defs/node" } }, required: ["next"] } },
      $ref: "#/$defs/node",
    };
    expect(() => checkGrammar(jsonGrammar(endless, strict), "schema")).toThrow("never ends");
    // alternatives that contain the whole schema again are compared once
    const nested = {
      $defs: {
        tree: {
          oneOf: [
            { type: "string" },
            { type: "object", properties: { in: { $ref: "#/$defs/tree" } }, required: ["in"] },
          ],
        },
      },
      $ref: "#/$defs/tree",
    };
    const accepted = await takes(jsonGrammar(nested, strict));
    expect(accepted('{"in": {"in": "leaf"}}')).toBe(true);
    expect(accepted('{"in": {}}')).toBe(false);
    checkGrammar('root ::= "a"\nunused ::= "b" unused', "grammar");
    expect(() => checkGrammar('root ::= "a" | next\nnext ::= "b" next', "grammar")).toThrow(
      "the rule next always needs",
    );
    const apart = (name: string) => ({
      type: "object",
      properties: { [name]: { $ref: "#" } },
      required: [name],
      additionalProperties: false,
    });
    checkGrammar(jsonGrammar({ oneOf: [{ type: "null" }, apart("a"), apart("b")] }, strict), "schema");
  });

  it("combines the names of properties with their patterns", async () => {
    const schema = {
      type: "object",
      propertyNames: { pattern: "^[0-9]+$" },
      patternProperties: { ".*": { type: "null" } },
    };
    const accepted = await takes(jsonGrammar(schema, strict));
    expect(accepted('{"404": null}')).toBe(true);
    expect(accepted('{"four": null}')).toBe(false);
    const noted = {
      ...schema,
      propertyNames: { description: "A status." },
      patternProperties: { "^4": {} },
    };
    expect((await takes(jsonGrammar(noted, strict)))('{"404": 1}')).toBe(true);
    const onlyEmpty = { ...schema, patternProperties: { "^$": { type: "null" } } };
    expect(() => jsonGrammar(onlyEmpty, strict)).toThrow("cannot be combined with propertyNames");
    const narrower = { ...schema, patternProperties: { "^4": { type: "null" } } };
    expect(() => jsonGrammar(narrower, strict)).toThrow("cannot be combined with propertyNames");
  });

  it("finds a number between any two, and reports bounds that are too close", async () => {
    for (const [from, to, between] of [
      [0, 1, "0.5"],
      [0, 0.01, "0.003"],
      [-0.001, 0, "-0.0005"],
      [0.1, 0.10000001, "0.100000005"],
      [7, 8, "7.25"],
    ] as const) {
      const accepted = await takes(
        jsonGrammar({ type: "number", exclusiveMinimum: from, exclusiveMaximum: to }, strict),
      );
      expect(accepted(between), between).toBe(true);
      for (const bound of [from, to]) expect(accepted(`${bound}`), `${bound}`).toBe(false);
    }
    const closest = { type: "number", exclusiveMinimum: 0, exclusiveMaximum: 5e-324 };
    expect(() => jsonGrammar(closest, strict)).toThrow("too close");
    checkGrammar(jsonGrammar(closest, { param: "schema", isStrict: false }), "schema");
    expect(() => jsonGrammar({ type: "number", exclusiveMinimum: 1, maximum: 1 }, strict)).toThrow(
      "no value can match",
    );
  });

  it("is as strict as several schemas together", async () => {
    const schema = {
      $defs: { named: { type: "object", properties: { name: { type: "string", maxLength: 3 } }, required: ["name"] } },
      allOf: [{ $ref: "#/$defs/named" }, { properties: { name: { minLength: 2 }, age: { type: "number" } } }],
      properties: { age: { type: "integer", minimum: 1 } },
      additionalProperties: true,
    };
    const accepted = await takes(jsonGrammar(schema, strict));
    const valid = ajv.compile(schema);
    for (const name of ["a", "ab", "abc", "abcd"])
      for (const age of [0, 1, 1.5])
        expect(accepted(JSON.stringify({ name, age })), `${name} ${age}`).toBe(valid({ name, age }));
    for (const left of [{ multipleOf: 7 }, { type: "integer", multipleOf: 6, minimum: 0 }]) {
      const multiples = await takes(jsonGrammar({ type: "integer", ...left }, strict));
      for (let value = -50; value < 400; value++)
        expect(multiples(`${value}`), `${value}`).toBe(ajv.validate({ type: "integer", ...left }, value));
    }
  });

  it("is refused soon where a schema multiplies without end", () => {
    const many = Array.from({ length: 200 }, (_, i) => ({ type: "object", properties: { [`p${i}`]: { const: i } } }));
    const nested = (depth: number): object =>
      depth === 0 ? {} : { oneOf: [many[depth], { anyOf: many, properties: { a: nested(depth - 1) } }] };
    for (const schema of [{ allOf: [{ anyOf: many }, { anyOf: many }] }, { oneOf: [...many, ...many] }, nested(40)])
      expect(() => jsonGrammar(schema, { param: "schema", isStrict: false })).toThrow(
        /alternatives|combines more|takes more than/,
      );
  });

  it.each([
    { type: "string", pattern: "(?=a)b" },
    { type: "string", format: "semver" },
    { type: "array", uniqueItems: true },
    { if: { properties: { a: { const: 1 } } }, type: "object", properties: { a: { type: "integer" } } },
    { type: "object", properties: { a: { $ref: "https://example.org/schema" } } },
    { oneOf: [{ type: "number" }, { type: "integer" }] },
  ])("leaves to the model what a grammar cannot express, unless it is strict: %j", (schema) => {
    expect(() => jsonGrammar(schema, strict)).toThrow(/schema\//);
    checkGrammar(jsonGrammar(schema, { param: "schema", isStrict: false }), "schema");
  });

  it.each([
    [{ type: "string", not: {} }, "/not"],
    [{ type: "object", properties: { a: { type: "number", multipleOf: 0.3 } } }, "/properties/a/multipleOf"],
    [{ type: "string", pattern: "(?=a)" }, "(?=a)"],
    [{ type: "string", format: "semver" }, "/format"],
    [{ type: "array", uniqueItems: true }, "/uniqueItems"],
    [{ $ref: "https://example.org" }, "/$ref"],
    [{ $ref: "#/$defs/none" }, "leads nowhere"],
    [{ type: "integer", minimum: 5, maximum: 2 }, "no value can match"],
    [{ type: "string", minLength: 1e9 }, "1000000000 times"],
    [{ type: "string", maxLength: 9, pattern: "a+b" }, "/maxLength"],
    [{ oneOf: [{ type: "number" }, { type: "integer" }] }, "/oneOf"],
    [{ if: { type: "string" } }, "/if"],
    [{ enum: [] }, "no value can match"],
    [{ allOf: [{ type: "string" }, { type: "null" }] }, "no value can match"],
    [{ $ref: "#" }, "no value can match"],
    [false, "no value can match"],
  ])("is refused where a grammar cannot express it: %j", (schema, named) => {
    expect(() => jsonGrammar(schema, strict)).toThrow(named);
  });
});

describe("a grammar for a regular expression", () => {
  it("takes what JavaScript takes as a whole", async () => {
    const sources = [
      "[a-c]+x?",
      "(\\d{2}|é.)*",
      "a|bc{2,3}|",
      "[^\\w\\s]",
      "\\.\\*\\\\",
      "[\\]\\-^]+",
      "\\u{1F600}?",
      "\\p{L}+",
      "\\P{L}",
    ];
    for (const source of sources) {
      const rules = new GrammarRules();
      rules.add(regexBody(rules, source, "regex"), "root");
      const accepted = await takes(rules.toString());
      const whole = new RegExp(`^(?:${source})$`, "u");
      const texts = ["", "a", "abcx", "12", "123", "éq", "12é\n", "bcc", "bc", "-", "_", ".*\\", "]^-", "😀", "aab"];
      for (const text of texts) expect(accepted(text), `${source} ${text}`).toBe(whole.test(text));
    }
  });

  it.each(["(", "a(?=b)", "(a)\\1", "a{1000}", "a^b", "(".repeat(100) + ")".repeat(100)])(
    "is refused: %s",
    (source) => {
      expect(() => regexBody(new GrammarRules(), source, "regex")).toThrow(/regular expression|repeats/);
    },
  );
});

describe("a client's grammar", () => {
  it.each([
    ['root ::= "a"{5,2}', "repeats something {5,2} times"],
    ['root ::= "a"{99999999999}', "at most 512"],
    ["root ::= foo", "no rule foo"],
    ['start ::= "a"', "no rule root"],
    ['root ::= "a', "where the end of the line should be"],
    ['root ::= ("a"?){500}', "too many ways"],
    ['root ::= (("a"?){20}){20}', "too many ways"],
    [`root ::= ${"(".repeat(100)}"a"${")".repeat(100)}`, "deeper"],
    ["root ::= [z-a]", "ends before it begins"],
    ["root ::= <[5]>", "should be"],
    ['root ::= "a"\nroot ::= "b"', "two rules root"],
    ['root ::= ""*', "empty text"],
  ])("that would harm llama.cpp is refused: %s", (text, why) => {
    expect(() => checkGrammar(text, "guided_grammar")).toThrow(why);
  });

  it("is read as llama.cpp reads it", async () => {
    const accepted = await takes(
      '# pairs\nroot ::= pair ("," pair)* # more\npair ::= [a-z]+ "=" |\n  "\\u00e9" | .  "!"\n',
    );
    for (const [text, is] of [
      ["ab=,é", true],
      ["x!", true],
      ["ab", false],
    ] as const)
      expect(accepted(text), text).toBe(is);
  });

  it("never makes the check fail in another way than by a refusal", () => {
    const parts = fc.constantFrom(
      "root",
      " ::= ",
      '"a"',
      "(",
      ")",
      "|",
      "[",
      "a-",
      "]",
      "{2,3}",
      "{",
      "}",
      "*",
      "?",
      "\n",
      "#",
      ".",
      "\\x",
      '"',
      " b ",
      "é",
    );
    fc.assert(
      fc.property(fc.array(parts, { maxLength: 20 }), (list) => {
        try {
          checkGrammar(`root ::= ${list.join("")}`, "guided_grammar");
        } catch (error) {
          expect((error as Error).name).toBe("ApiError");
        }
      }),
      { numRuns: 2000 },
    );
  });
});

describe("an answer with tools and a required form", () => {
  const tools = [{ name: "look", description: undefined, parameters: { properties: { at: { type: "integer" } } } }];
  const schema = {
    type: "object",
    properties: { sum: { type: "integer" } },
    required: ["sum"],
    additionalProperties: false,
  };
  const form = { kind: "json" as const, schema, ...strict };

  it.each([
    ["<tool_call>", "</tool_call>"],
    ["[TOOL_CALLS]", ""],
    ["", ""],
  ])("has the form, or calls a tool, with %j before it", async (open, close) => {
    const style = { open, close, listed: open.startsWith("["), argumentsKey: "arguments" as const };
    const accepted = await takes(callsOrForm(tools, style, true, form).text);
    const call = '{"name": "look", "arguments": {"at": 3}}';
    expect(accepted('{"sum":3}')).toBe(true);
    expect(accepted(`${open}${style.listed ? `[${call}]` : call}${close}`)).toBe(true);
    expect(accepted('{"other":3}')).toBe(false);
    expect(accepted("Well, ")).toBe(false);
  });

  it("cannot be one of a grammar of its own", () => {
    const style = { open: "<tool_call>", close: "</tool_call>", listed: false, argumentsKey: "arguments" as const };
    expect(() => callsOrForm(tools, style, true, { kind: "grammar", text: 'root ::= "a"', param: "grammar" })).toThrow(
      /leave one of them out/,
    );
  });
});
