import { existsSync, readdirSync, readFileSync } from "node:fs";
import path from "node:path";
import { describe, expect, it } from "vitest";
import { readmePage } from "../../scripts/models.js";
import { programFor } from "../../src/cli/program.js";

const root = path.resolve(import.meta.dirname, "../..");
const readme = readFileSync(path.join(root, "README.md"), "utf8");

describe("the README", () => {
  it("has the table of models that the registry makes", () => {
    expect(readmePage()).toBe(readme);
    expect(readme).toContain("| `gpt2` ");
  });

  it("has a line for each folder of src/", () => {
    const folders = readdirSync(path.join(root, "src"), { withFileTypes: true }).filter((entry) => entry.isDirectory());
    const listed = [...readme.matchAll(/^src\/([\w-]+) /gm)].map(([, name]) => name);
    expect(listed.sort()).toEqual(folders.map(({ name }) => name).sort());
  });

  it.each(["README.md", "CONTRIBUTING.md", "examples/README.md"])("links only to what is there, in %s", (file) => {
    const text = readFileSync(path.join(root, file), "utf8");
    const links = [...text.matchAll(/\]\((?!https?:)([^)#]+)(?:#[^)]*)?\)/g)].map(([, link = ""]) => link);
    const missing = links.filter((link) => !existsSync(path.join(root, path.dirname(file), link)));
    expect(links.length).toBeGreaterThan(0);
    expect(missing).toEqual([]);
  });
});

it("docs/commands.md has a row for each command", async () => {
  const page = readFileSync(path.join(root, "docs/commands.md"), "utf8");
  const [firstTable = ""] = page.split("\n## ");
  const rows = [...firstTable.matchAll(/^\| `([\w-]+)` +\|/gm)].map(([, name]) => name);
  const { commands } = await programFor(undefined);
  expect(rows.sort()).toEqual(commands.map((command) => command.name()).sort());
});
