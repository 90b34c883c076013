import { mkdirSync, writeFileSync } from "node:fs";
import path from "node:path";
import { gzipSync } from "node:zlib";
import fc from "fast-check";
import { parquetWriteBuffer } from "hyparquet-writer";
import { describe, expect, it } from "vitest";
import { DOCUMENT_DEFAULTS, type Document, findDataFiles, readDocuments } from "../../src/data/index.js";
import { temporaryDirectory } from "../temporary.js";

const directory = temporaryDirectory();

async function documentsOf(
  name: string,
  content: string | Uint8Array,
  options = DOCUMENT_DEFAULTS,
): Promise<Document[]> {
  const file = path.join(directory, name);
  writeFileSync(file, content);
  const documents: Document[] = [];
  for await (const document of readDocuments(file, options)) documents.push(document);
  return documents;
}
const whole = (...texts: string[]): Document[] => texts.map((text) => ({ text, continues: false }));

describe("documents", () => {
  it("come from text by its separators, plain or gzipped", async () => {
    const text = "One day\nit rained.\n<|endoftext|>\nTwo.<|endoftext|>  \n<|endoftext|>Three";
    const expected = whole("One day\nit rained.", "Two.", "Three");
    expect(await documentsOf("a.txt", text)).toEqual(expected);
    expect(await documentsOf("a.txt.gz", gzipSync(text))).toEqual(expected);
    expect(await documentsOf("b.txt", "x###y", { ...DOCUMENT_DEFAULTS, separator: "###" })).toEqual(whole("x", "y"));
  });

  it("come from long text without separators in pieces that add up to it", async () => {
    const lines = fc.array(fc.stringMatching(/^[a-z ]{0,80}$/), { minLength: 50, maxLength: 400 });
    await fc.assert(
      fc.asyncProperty(lines, async (all) => {
        const text = `start ${all.join("\n")} end`;
        const pieces = await documentsOf("long.txt", text);
        expect(pieces.map((piece) => piece.text).join("")).toBe(text);
        expect(pieces.map((piece) => piece.continues)).toEqual(pieces.map((_, i) => i > 0));
      }),
      { numRuns: 25 },
    );
  });

  it("come from JSON lines by a field", async () => {
    const text = '{"text":"a"}\n\n{"text":"b\\nc","body":"d"}\n';
    expect(await documentsOf("a.jsonl", text)).toEqual(whole("a", "b\nc"));
    expect(
      await documentsOf("b.jsonl.gz", gzipSync('{"body":"d"}\n'), { ...DOCUMENT_DEFAULTS, field: "body" }),
    ).toEqual(whole("d"));
  });

  it("come from a Parquet column", async () => {
    const rows = Array.from({ length: 3000 }, (_, i) => `story ${i}`);
    const bytes = parquetWriteBuffer({
      columnData: [
        { name: "id", data: rows.map((_, i) => i), type: "INT32" },
        { name: "text", data: rows, type: "STRING" },
      ],
    });
    expect(await documentsOf("a.parquet", new Uint8Array(bytes))).toEqual(whole(...rows));
  });

  it.each([
    ["bad JSON", "c.jsonl", '{"text":"a"}\n{"text":', /c\.jsonl:2 is no valid JSON/],
    ["a missing field", "d.jsonl", '{"body":"a"}', /d\.jsonl:1 has no text in the field "text" \(it has: body\)/],
    ["a field that is no text", "e.jsonl", '{"text":3}', /e\.jsonl:1 has no text/],
    ["a broken gzip", "f.txt.gz", "not gzip", /f\.txt\.gz cannot be read/],
    ["a broken Parquet file", "g.parquet", "PAR1 and nothing else", /g\.parquet cannot be read/],
  ])("with %s are refused, with the place", async (_, name, content, message) => {
    await expect(documentsOf(name, content)).rejects.toThrow(message);
  });
});

describe("data arguments", () => {
  it("are files, directories and globs", async () => {
    const root = path.join(directory, "tree");
    mkdirSync(path.join(root, "deep"), { recursive: true });
    for (const name of ["b.txt", "a.jsonl", "deep/c.txt.gz", "ignored.bin"]) writeFileSync(path.join(root, name), "x");
    const names = async (input: string) => (await findDataFiles([input])).map((file) => path.relative(root, file));
    expect(await names(root)).toEqual(["a.jsonl", "b.txt", "deep/c.txt.gz"]);
    expect(await names(path.join(root, "b.txt"))).toEqual(["b.txt"]);
    expect(await names(path.join(root, "**/*.txt*"))).toEqual(["b.txt", "deep/c.txt.gz"]);
    await expect(findDataFiles([path.join(root, "none*")])).rejects.toThrow(/no data found/);
  });
});
