import { execFile, spawnSync } from "node:child_process";
import { readFileSync, symlinkSync, writeFileSync } from "node:fs";
import path from "node:path";
import { promisify } from "node:util";
import Anthropic from "@anthropic-ai/sdk";
import OpenAI from "openai";
import { afterAll, afterEach, beforeAll, describe, expect, it, vi } from "vitest";
import type { RunningServer } from "../../src/serve/index.js";
import { temporaryDirectory } from "../temporary.js";
import { serveTiny } from "./tiny-server.js";

const root = path.resolve(import.meta.dirname, "../..");
const directory = temporaryDirectory();
symlinkSync(path.join(root, "node_modules"), path.join(directory, "node_modules"), "junction");

const model = "my-model";
let server: RunningServer;
beforeAll(async () => {
  server = await serveTiny({ names: [model] });
});
afterAll(() => server.close());
afterEach(() => void vi.unstubAllEnvs());

const page = readFileSync(path.join(root, "docs/clients.md"), "utf8");
const [, ...sections] = page.split(/^## /m);
const programs = sections.flatMap((section) =>
  [...section.matchAll(/^```(ts|python|sh)\n([\s\S]*?)^```$/gm)].map(([, language = "", code = ""]) => ({
    title: section.split("\n")[0],
    language,
    code,
  })),
);

/** What runs a block, and the name of its file; TypeScript without types is JavaScript. */
const RUNNERS: Readonly<Record<string, readonly [command: string, file: string]>> = {
  ts: [process.execPath, "example.mjs"],
  python: ["python3", "example.py"],
  sh: ["sh", "example.sh"],
};
const NEEDED: Readonly<Record<string, readonly [command: string, ...string[]]>> = {
  python: ["python3", "-c", "import openai"],
  sh: ["curl", "--version"],
};
const canRun = (language: string): boolean => {
  const [command, ...options] = NEEDED[language] ?? [process.execPath, "--version"];
  return spawnSync(command, options).status === 0;
};

describe("the page about clients", () => {
  it("has programs for each API", () => {
    expect(programs.map(({ title }) => title)).toEqual(["OpenAI", "OpenAI", "AI SDK", "Anthropic", "Ollama", "curl"]);
  });

  for (const { title, language, code } of programs)
    it.skipIf(!canRun(language))(`has a program that works as it is: ${title} (${language})`, async () => {
      const [command, file] = RUNNERS[language]!;
      writeFileSync(path.join(directory, file), code.replaceAll("http://127.0.0.1:8000", server.url));
      const { stdout } = await promisify(execFile)(command, [file], { cwd: directory });
      expect(stdout.trim()).not.toBe("");
      expect(stdout).not.toMatch(/"error"/); // curl ends with 0 whatever it is answered
    });

  it("names the variables that the clients read", async () => {
    vi.stubEnv("OPENAI_BASE_URL", `${server.url}/v1`);
    vi.stubEnv("OPENAI_API_KEY", "none");
    expect((await new OpenAI().models.list()).data.map(({ id }) => id)).toEqual([model]);
    vi.stubEnv("ANTHROPIC_BASE_URL", server.url);
    vi.stubEnv("ANTHROPIC_API_KEY", "none");
    expect((await new Anthropic().models.list()).data.map(({ id }) => id)).toEqual([model]);
  });
});
