import { readdirSync, readFileSync } from "node:fs";
import path from "node:path";
import type { Command } from "commander";
import { describe, expect, it } from "vitest";
import { foundryCommand } from "../src/cli/foundry.js";
import { serveCommand } from "../src/cli/serve.js";

const root = path.resolve(import.meta.dirname, "..");

/** Variables that files of the program read. */
const inCode = new Set(
  ["src", "bin"].flatMap((folder) =>
    readdirSync(path.join(root, folder), { recursive: true, encoding: "utf8" })
      .filter((name) => /\.(ts|cjs)$/.test(name))
      .flatMap((name) => [
        ...readFileSync(path.join(root, folder, name), "utf8").matchAll(/process\.env\.([A-Z][A-Z0-9_]+)/g),
      ])
      .map(([, name = ""]) => name),
  ),
);

const ofOptions = (command: Command): string[] => [
  ...command.options.flatMap(({ envVar }) => envVar ?? []),
  ...command.commands.flatMap((inner) => ofOptions(inner as Command)),
];

describe("docs/environment.md", () => {
  const documented = new Set(
    [...readFileSync(path.join(root, "docs/environment.md"), "utf8").matchAll(/^\| (.*?) +\|/gm)].flatMap(
      ([, cell = ""]) => [...cell.matchAll(/`([A-Z][A-Z0-9_*]+)`/g)].map(([, name = ""]) => name),
    ),
  );
  const covers = (name: string) =>
    [...documented].some((one) => one === name || (one.endsWith("*") && name.startsWith(one.slice(0, -1))));

  it("names every variable that the program reads", () => {
    const read = [...inCode, ...ofOptions(serveCommand), ...ofOptions(foundryCommand)];
    expect(read.length).toBeGreaterThan(30);
    expect(read.filter((name) => !covers(name))).toEqual([]);
  });

  it("names no other", () => {
    const elsewhere = ["NO_COLOR", "FORCE_COLOR", "DATABASE_URL"]; // libraries and options read them
    const options = [...ofOptions(serveCommand), ...ofOptions(foundryCommand)];
    const isRead = (name: string) =>
      name.endsWith("*")
        ? options.some((one) => one.startsWith(name.slice(0, -1)))
        : inCode.has(name) || elsewhere.includes(name);
    const unknown = [...documented].filter((name) => !isRead(name));
    expect(unknown).toEqual([]);
  });
});
