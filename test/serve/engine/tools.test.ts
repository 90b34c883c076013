import fc from "fast-check";
import { describe, expect, it } from "vitest";
import { CallReader, callStyle, templateMessages } from "../../../src/serve/engine/tools.js";

const tools = [{ name: "weather", parameters: { type: "object" } }];
const templates = {
  tags: "{{ tools }} <tool_call>",
  list: "{{ tools }} [TOOL_CALLS]",
  marked: "{{ tools }} [TOOL_CALLS] [ARGS]",
  markedWithIds: "{{ tools }} [TOOL_CALLS] [CALL_ID] [ARGS]",
  bare: '{{ tools }} "parameters" python_tag',
};
type Kind = keyof typeof templates;

const call = (city: string) => `{"name": "weather", "arguments": {"city": ${JSON.stringify(city)}}}`;
const written: Readonly<Record<Kind, (cities: readonly string[], blank: string) => string>> = {
  tags: (cities, blank) => cities.map((city) => `<tool_call>${blank}${call(city)}${blank}</tool_call>`).join(blank),
  list: (cities) => (cities.length === 0 ? "" : `[TOOL_CALLS][${cities.map(call).join(", ")}]`),
  marked: (cities) => cities.map((city) => `[TOOL_CALLS]weather[ARGS]{"city": ${JSON.stringify(city)}}`).join(""),
  markedWithIds: (cities) =>
    cities.map((city, i) => `[TOOL_CALLS]weather[CALL_ID]12345678${i}[ARGS]{"city": ${JSON.stringify(city)}}`).join(""),
  bare: ([city = "Lima"]) => call(city),
};

/** What a reader finds in a text that comes in chunks: joined texts, and calls by their cities. */
function read(kind: Kind, chunks: readonly string[], isCut: boolean): string[] {
  const reader = new CallReader(tools, callStyle(templates[kind]), false);
  const found: string[] = [];
  let isText = false;
  for (const part of [...chunks.flatMap((chunk) => reader.push(chunk)), ...reader.end(isCut)]) {
    if ("call" in part) found.push(`call ${(JSON.parse(part.call.arguments) as { city: string }).city}`);
    else if (isText) found.push(`${found.pop()}${part.text}`);
    else found.push(part.text);
    isText = !("call" in part);
  }
  return found;
}

const chunksOf = (text: string, at: readonly number[]): string[] => {
  const cuts = [...new Set(at.map((one) => one % (text.length + 1)))].sort((a, b) => a - b);
  return [...cuts, text.length].map((end, i) => text.slice(i === 0 ? 0 : cuts[i - 1], end));
};
const blanks = fc.constantFrom("", "\n", "\n\n", " \n");
const cities = fc.array(fc.constantFrom("Lima", "Oslo", "São Paulo", "a < b", "[TOOL_CALLS]x[ARGS]{}"), {
  minLength: 1,
  maxLength: 3,
});
const splits = fc.array(fc.nat(500), { maxLength: 12 });

describe("calls in the messages of a chat template", () => {
  const turns = [
    {
      role: "assistant" as const,
      content: "",
      calls: [{ id: "call_37e0648484cf4af582151f74", name: "weather", arguments: "{}" }],
    },
    { role: "tool" as const, content: "rain", callId: "call_37e0648484cf4af582151f74" },
  ];
  const idsOf = (kind: Kind) => {
    const [asked, answered] = templateMessages(turns, callStyle(templates[kind])) as [
      { tool_calls: { id: string }[] },
      { tool_call_id: string },
    ];
    return [asked.tool_calls[0]?.id, answered.tool_call_id];
  };

  it("have ids of nine letters and digits where Mistral's templates want them so, and the same for a call and its result", () => {
    const [own, result] = idsOf("list");
    expect(own).toMatch(/^[a-zA-Z0-9]{9}$/);
    expect(result).toBe(own);
  });

  it("have the ids that clients know elsewhere", () => {
    expect(new Set([...idsOf("tags"), ...idsOf("bare")])).toEqual(new Set(["call_37e0648484cf4af582151f74"]));
  });
});

describe("calls of tools in a text", () => {
  it("that a limit cut off are those that are complete", () => {
    const text = written.marked(["Lima", "Oslo"], "");
    expect(read("marked", [text.slice(0, -4)], true)).toEqual(["call Lima"]);
    expect(read("marked", [text.slice(0, -4)], false)).toEqual([text.slice(0, -4)]);
    expect(read("markedWithIds", ["[TOOL_CALLS]wea"], true)).toEqual([]);
  });

  it("are found, and no blanks around them are text, however the text is cut into chunks", () => {
    const kinds = fc.constantFrom<Kind>("tags", "list", "marked", "markedWithIds");
    const words = fc.constantFrom("", "I look.", "a <b> c");
    fc.assert(
      fc.property(kinds, words, blanks, cities, blanks, splits, (kind, before, blank, all, end, at) => {
        const text = before + blank + written[kind](all, blank) + end;
        const wanted = [...(before === "" ? [] : [before]), ...all.map((city) => `call ${city}`)];
        expect(read(kind, chunksOf(text, at), false)).toEqual(wanted);
      }),
      { numRuns: 500 },
    );
    expect(read("bare", [" ", call("Lima").slice(0, 5), call("Lima").slice(5)], false)).toEqual(["call Lima"]);
  });

  it("keep large whole numbers, and closing tags within their texts", () => {
    const found = (text: string) => {
      const reader = new CallReader(tools, callStyle(templates.tags), false);
      return [...reader.push(text), ...reader.end(false)].map((part) =>
        "call" in part ? part.call.arguments : part.text,
      );
    };
    const large = '{"id": 175928847299117063, "of": [1, {"a": "}, \\"b"}]}';
    expect(found(`<tool_call>{"name": "weather", "arguments": ${large}}</tool_call>`)).toEqual([large]);
    expect(
      found(
        '<tool_call>[{"name": "weather", "arguments": {"n": 12345678901234567890}}, {"name": "weather"}]</tool_call>',
      ),
    ).toEqual(['{"n": 12345678901234567890}', "{}"]);
    fc.assert(
      fc.property(splits, (at) => {
        const tagged = call('a </tool_call> \\" b');
        const text = `Now: <tool_call>${tagged}</tool_call> done`;
        expect(read("tags", chunksOf(text, at), false)).toEqual(["Now:", 'call a </tool_call> \\" b', "done"]);
      }),
    );
    expect(found('<tool_call>{"name: "weather"}</tool_call> done').join("")).toContain("done");
  });

  it("go on with a text, in the order in which they were written", () => {
    const text = `One.\n${written.tags(["Lima"], "\n")}\n\nTwo. ${written.tags(["Oslo"], "")} Three.`;
    fc.assert(
      fc.property(splits, (at) => {
        expect(read("tags", chunksOf(text, at), false)).toEqual(["One.", "call Lima", "Two.", "call Oslo", "Three."]);
      }),
    );
  });

  it("that a limit cut leave nothing of how calls are written", () => {
    fc.assert(
      fc.property(fc.constantFrom<Kind>("tags", "list", "bare"), cities, fc.nat(), splits, (kind, all, length, at) => {
        const text = written[kind](all, "\n");
        const cut = text.slice(0, length % text.length);
        for (const part of read(kind, chunksOf(cut, at), true)) expect(part).toMatch(/^call /);
      }),
      { numRuns: 500 },
    );
  });

  it("are text where they are none, and all blanks of a text without calls are its own", () => {
    for (const text of ["<tool_call> is a tag", "<tool", " a \n\n", "<tool_call>{}</tool_call>", "{}", "\n"])
      fc.assert(
        fc.property(splits, (at) => {
          expect(read("tags", chunksOf(text, at), false)).toEqual([text]);
        }),
      );
    expect(read("bare", ["{", '"a": 1', "}\n"], true)).toEqual(['{"a": 1}\n']);
  });
});
