import { readFileSync } from "node:fs";
import path from "node:path";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { markdownTable } from "../../scripts/markdown.js";
import { HINTS } from "../../src/serve/api/hints.js";
import type { RunningServer } from "../../src/serve/index.js";
import { CLIENTS, WANTS } from "./client-checks.js";
import { model, serveTiny } from "./tiny-server.js";

const root = path.resolve(import.meta.dirname, "../..");
const page = path.join(root, "docs/clients.md");
/** Where the part of the page begins that this test makes. */
const BEGINNING = "## What works";

let server: RunningServer;
beforeAll(async () => {
  server = await serveTiny({ contextSize: 1024 });
});
afterAll(() => server.close());

/** With SmolLM2-135M-Instruct: programs that no test can start. */
const BY_HAND: readonly (readonly string[])[] = [
  ["tried by hand, November 2026", "what worked"],
  ["Claude Code 2.1.197, `claude -p`", "an answer; a prompt that is too long is told as such"],
  ["Codex 0.171.0, `codex exec`", "a prompt that is too long is told as such"],
  ["LangChain: langchain-openai, -anthropic, -ollama", "answers, streams, tools over two turns, forms, embeddings"],
  [
    "litellm: openai, anthropic, ollama_chat, vllm",
    "answers, streams, tools, embeddings, `ContextWindowExceededError`",
  ],
  ["ollama for Python", "chats, texts, tools, forms, embeddings, lists"],
  ["openai 3, anthropic 2, ollama 0 for Python", "answers, `extra_body`, the addresses from the environment"],
];

const majorVersion = (name: string): string => {
  const file = path.join(root, "node_modules", name, "package.json");
  return (JSON.parse(readFileSync(file, "utf8")) as { version: string }).version.split(".")[0] ?? "";
};

describe("the table of clients", () => {
  const works = new Map<string, Set<string>>();

  for (const { client, checks } of CLIENTS)
    for (const [want, check] of Object.entries(checks))
      it(`says truly: ${client}, ${want}`, async () => {
        expect(await check(server.url, model)).toBe(true);
        works.set(client, (works.get(client) ?? new Set()).add(want));
      });

  it("is what the tests found (vitest -u writes it anew)", async () => {
    const lines = CLIENTS.map(({ client, packageName, api, checks }) => [
      `${client} ${majorVersion(packageName)}`,
      `\`${api}\``,
      ...WANTS.map((want) => (!(want in checks) ? "" : works.get(client)?.has(want) ? "yes" : "**no**")),
    ]);
    const hints = Object.entries(HINTS).map(
      ([api, names]) => `- **${api}**: ${names.map((name) => `\`${name}\``).join(", ")}`,
    );
    const text = [
      BEGINNING,
      "Made by `test/serve/clients-table.test.ts`, with each client as npm has it, unmodified. What a client has no call for is left blank.",
      markdownTable([["client", "asks", ...WANTS], ...lines]),
      "Tools of `ollama`: its API has nothing that makes a model call one, so an answer after a call is asked for.",
      markdownTable(BY_HAND),
      "## Hints",
      "Fields that are taken and not read, `cache_control` anywhere beside them. A field that is neither one of these nor supported is refused by name; one that is `null` is left out.",
      hints.join("\n"),
    ];
    const [written = ""] = readFileSync(page, "utf8").split(BEGINNING);
    await expect(`${written}${text.join("\n\n")}\n`).toMatchFileSnapshot(page);
  });
});
