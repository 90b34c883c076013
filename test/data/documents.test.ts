import { execFileSync } from "node:child_process";
import { mkdirSync, writeFileSync } from "node:fs";
import path from "node:path";
import { crc32, gzipSync } from "node:zlib";
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
  notes: string[] = [],
): Promise<Document[]> {
  const file = path.join(directory, name);
  writeFileSync(file, content);
  const documents: Document[] = [];
  for await (const document of readDocuments(file, options, (note) => notes.push(note))) documents.push(document);
  return documents;
}
const byField = (field: string) => ({ ...DOCUMENT_DEFAULTS, field });

const WORD = `<?xml version="1.0"?><Types xmlns="http://schemas.openxmlformats.org/package/2006/content-types"><Override PartName="/word/document.xml" ContentType="application/vnd.openxmlformats-officedocument.wordprocessingml.document.main+xml"/></Types>`;

/** A ZIP archive of files that are not compressed (the format's specification, sections 4.3.7 to 4.3.16). */
function zip(files: Readonly<Record<string, string>>): Buffer {
  const [locals, central]: [Buffer[], Buffer[]] = [[], []];
  let offset = 0;
  for (const [name, content] of Object.entries(files)) {
    const common = Buffer.alloc(26);
    common.writeUInt16LE(20, 0);
    common.writeUInt32LE(crc32(content), 10);
    common.writeUInt32LE(content.length, 14);
    common.writeUInt32LE(content.length, 18);
    common.writeUInt16LE(name.length, 22);
    const local = Buffer.concat([Buffer.from("PK\x03\x04"), common, Buffer.from(name + content)]);
    const tail = Buffer.alloc(14);
    tail.writeUInt32LE(offset, 10);
    locals.push(local);
    central.push(Buffer.concat([Buffer.from("PK\x01\x02\x14\0"), common, tail, Buffer.from(name)]));
    offset += local.length;
  }
  const end = Buffer.alloc(22);
  end.write("PK\x05\x06");
  end.writeUInt16LE(central.length, 8);
  end.writeUInt16LE(central.length, 10);
  end.writeUInt32LE(Buffer.concat(central).length, 12);
  end.writeUInt32LE(offset, 16);
  return Buffer.concat([...locals, ...central, end]);
}

/** "one line of text\n" 30,000 times and "and the end\n", by the zstd program, in two frames. */
const ZSTD = Buffer.from(
  "KLUv/aQwyAcAzAAAiG9uZSBsaW5lIG9mIHRleHQKAQDZ/ymfS0QAAAABAP3/lE8gRAAAAAEA/f85AAJFAAAAAQAtyDkAAjaWKmootS/9BFhhAABhbmQgdGhlIGVuZApClBPI",
  "base64",
);
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

  it("come from a long row in pieces that add up to it, which end at line ends", async () => {
    const text = Array.from({ length: 40_000 }, (_, i) => `line ${i}\n`).join("");
    const short = "x\n".repeat(60_000);
    const pieces = await documentsOf("row.jsonl", [text, short].map((row) => JSON.stringify({ text: row })).join("\n"));
    const own = pieces.slice(0, -1);
    expect(own.length).toBeGreaterThan(3);
    expect(own.map((piece) => piece.text).join("")).toBe(text);
    expect(own.map(({ continues }) => continues)).toEqual(own.map((_, i) => i > 0));
    expect(own.every((piece) => piece.text.endsWith("\n") && piece.text.length < 2 ** 17)).toBe(true);
    expect(pieces.at(-1)).toEqual({ text: short, continues: false });
  });

  it("come from a line of any length in pieces that add up to it, between words where there are some", async () => {
    const words = Array.from({ length: 400_000 }, (_, i) => `word${i}`).join(" ");
    const pieces = await documentsOf("one-line.txt", words);
    expect(pieces.length).toBeGreaterThan(2);
    expect(pieces.map(({ text }) => text).join("")).toBe(words);
    expect(pieces.slice(1).every(({ text, continues }) => continues && text.startsWith(" word"))).toBe(true);
    const faces = await documentsOf("no-spaces.txt", `${"a".repeat(2 ** 20 - 1)}${"😀".repeat(2 ** 20)}`);
    expect(faces.length).toBeGreaterThan(1);
    for (const { text } of faces) expect(Buffer.from(text).toString()).toBe(text); // no half of a character
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
    ["bad JSON", "c.jsonl", '{"text":"a"}\n{"text":', /c\.jsonl:2 is not valid JSON/],
    ["a missing field", "d.jsonl", '{"body":"a"}', /d\.jsonl:1 has no text in the field "text" \(it has: body\)/],
    ["a field that is not text", "e.jsonl", '{"text":3}', /e\.jsonl:1 has a number in the field "text", not text/],
    ["a broken gzip", "f.txt.gz", gzipSync("x".repeat(1000)).subarray(0, 20), /f\.txt\.gz cannot be read/],
    ["a broken Parquet file", "g.parquet", "PAR1 and nothing else", /g\.parquet cannot be read/],
    ["a Parquet ending only", "h.parquet", "some text", /h\.parquet is not a Parquet file/],
  ])("with %s are refused, with the place", async (_, name, content, message) => {
    await expect(documentsOf(name, content)).rejects.toThrow(message);
  });
});

describe("what a file is", () => {
  const utf16 = (text: string, bigEndian = false): Buffer => {
    const bytes = Buffer.from(text, "utf16le");
    return bigEndian ? bytes.swap16() : bytes;
  };
  const rows = '[\n {"text": "one [1]"},\n {"text": "two"}\n]\n';
  const alpaca =
    '[{"instruction":"Add 1 and 2.","input":"","output":"3"},{"instruction":"Say \\"hi\\".","output":"hi"}]';

  it.each<[string, string, string | Uint8Array, string, string[]]>([
    ["a JSON array, in any name", "a.json", rows, "text", ["one [1]", "two"]],
    ["a JSON array called text", "a.txt", rows, "text", ["one [1]", "two"]],
    ["a JSON array called JSON lines", "a.jsonl", rows, "text", ["one [1]", "two"]],
    ["instructions", "alpaca.json", alpaca, "instruction", ["Add 1 and 2.", 'Say "hi".']],
    ["a JSON array of texts", "texts.json", '["one","two"]', "text", ["one", "two"]],
    ["JSON lines called text", "lines.txt", '{"text":"a"}\n{"text":"b"}\n', "text", ["a", "b"]],
    ["objects on several lines each", "p.json", '{\n "text": "a"\n}\n{\n "text": "b"\n}\n', "text", ["a", "b"]],
    ["an object around a list", "o.json", '{"version":1,"data":[{"text":"a"},{"text":"b"}]}', "text", ["a", "b"]],
    ["columns as pandas writes them", "pd.json", '{"text":{"0":"a","1":"b"},"id":{"0":1,"1":2}}', "text", ["a", "b"]],
    ["CSV", "a.csv", 'id,text\n1,"a, ""b""\nc"\n2,d\n', "text", ['a, "b"\nc', "d"]],
    ["CSV with a byte order mark", "b.csv", "\ufefftext,id\r\na,1\r\nb,2\r\n", "text", ["a", "b"]],
    ["CSV with semicolons", "c.csv", 'id;"text"\n1;a, b\n2;c\n', "text", ["a, b", "c"]],
    ["CSV called text", "d.txt", "id,text\n1,a\n2,b\n", "text", ["a", "b"]],
    ["TSV", "a.tsv", "id\ttext\n1\ta, b\n2\tc\n", "text", ["a, b", "c"]],
    ["UTF-16 as PowerShell writes it", "p.txt", utf16("\ufeffGrüße, 世界 😀"), "text", ["Grüße, 世界 😀"]],
    ["UTF-16, big-endian", "q.txt", utf16("\ufeffGrüße", true), "text", ["Grüße"]],
    ["UTF-16 without a mark", "r.txt", utf16("plain words in a row\n"), "text", ["plain words in a row"]],
    ["CSV in UTF-16", "e.csv", utf16("\ufeffid\ttext\n1\ta\n"), "text", ["a"]],
    ["UTF-8 with a byte order mark", "s.txt", "\ufeffword", "text", ["word"]],
    ["gzip without the ending", "t.txt", gzipSync("packed"), "text", ["packed"]],
    ["gzip in gzip", "u.txt.gz", gzipSync(gzipSync("packed")), "text", ["packed"]],
    ["text called gzip", "v.txt.gz", "not packed", "text", ["not packed"]],
    ["gzip around JSON lines", "w.txt", gzipSync('{"text":"a"}\n{"text":"b"}\n'), "text", ["a", "b"]],
    ["text in brackets", "x.txt", "[Applause] Thank you.", "text", ["[Applause] Thank you."]],
    ["text in braces", "y.txt", "{a set} of words", "text", ["{a set} of words"]],
    ["text with commas", "z.txt", "Yes, text, of course.\nAnd more.", "text", ["Yes, text, of course.\nAnd more."]],
    ["fields by path", "chat.jsonl", '{"messages":[{"content":"a"},{"content":"b"}]}', "messages.content", ["a\nb"]],
    ["a field with a dot", "dot.jsonl", '{"a.b":"x","a":{"b":"y"}}', "a.b", ["x"]],
  ])("%s", async (_, name, content, field, expected) => {
    const documents = await documentsOf(name, content, byField(field));
    expect(documents.map(({ text }) => text)).toEqual(expected);
  });

  it("Zstandard, of several blocks and frames", async () => {
    const documents = await documentsOf("packed.txt", ZSTD);
    expect(documents.map(({ text }) => text).join("")).toBe(`${"one line of text\n".repeat(30_000)}and the end`);
    await expect(documentsOf("cut.txt", ZSTD.subarray(0, -8))).rejects.toThrow(
      /cut\.txt cannot be read: unexpected EOF/,
    );
    const wide = Buffer.from([0x28, 0xb5, 0x2f, 0xfd, 0x00, 0xa8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
    await expect(documentsOf("wide.txt", wide)).rejects.toThrow(/window of 2048 MiB/);
  });

  it("Parquet, by the path of a struct's field, whatever its name", async () => {
    const bytes = parquetWriteBuffer({
      columnData: [
        { name: "id", data: [1, 2, 3] },
        { name: "text", data: ["x", "y", "z"] },
        { name: "messages", data: [{ content: "a", role: "user" }, { content: "b", role: "user" }, null] },
      ],
      schema: [
        { name: "root", num_children: 3 },
        { name: "id", type: "INT32", repetition_type: "REQUIRED" },
        { name: "text", type: "BYTE_ARRAY", converted_type: "UTF8", repetition_type: "REQUIRED" },
        { name: "messages", repetition_type: "OPTIONAL", num_children: 2 },
        { name: "content", type: "BYTE_ARRAY", converted_type: "UTF8", repetition_type: "OPTIONAL" },
        { name: "role", type: "BYTE_ARRAY", converted_type: "UTF8", repetition_type: "OPTIONAL" },
      ],
    });
    const notes: string[] = [];
    const file = new Uint8Array(bytes);
    expect(await documentsOf("s.bin", file, byField("messages.content"), notes)).toEqual(whole("a", "b"));
    expect(notes).toEqual([expect.stringMatching(/s\.bin: 1 of 3 rows were left out/)]);
    await expect(documentsOf("s.bin", file, byField("messages"))).rejects.toThrow(
      /record of content, role.*messages\.content/,
    );
    await expect(documentsOf("s.bin", file, byField("content"))).rejects.toThrow(/\(it has: id, text, messages\)/);
  });

  it.each([
    ["a Word document", "a.txt", zip({ "[Content_Types].xml": WORD, "word/document.xml": "<w/>" }), /docx.*plain text/],
    ["an archive", "b.jsonl", zip({ "a.txt": "text" }), /zip.*unpack it/],
    [
      "a safetensors model",
      "c.txt",
      Buffer.from(`\x10\0\0\0\0\0\0\0{"a":{}}        `),
      /a safetensors model, not text/,
    ],
    ["a GGUF model", "d", Buffer.from("GGUF\x03\0\0\0"), /a GGUF model/],
    ["a picture", "e.txt", Buffer.from("89504e470d0a1a0a0000000d49484452", "hex"), /png/],
    ["a PDF file", "f.txt", "%PDF-1.7\nobj", /pdf.*extract its text/],
    ["rich text", "g.txt", "{\\rtf1\\ansi Hello}", /rtf.*plain text/],
    ["a pickle", "h.csv", Buffer.from([0x80, 4, 0x95, 0, 0]), /a Python pickle/],
    ["a NumPy array", "i.txt", Buffer.from("\x93NUMPY\x01\0", "latin1"), /a NumPy array/],
    ["a compressed picture", "j.gz", gzipSync(Buffer.from("ffd8ffe000104a46494600", "hex")), /jpg/],
    ["an xz file", "k.txt", Buffer.from("fd377a585a000004e6d6b446", "hex"), /xz.*gzip or zstd/],
    ["UTF-32", "l.txt", Buffer.from("fffe000061000000", "hex"), /UTF-32/],
    ["Latin-1", "m.txt", Buffer.from("Grüße aus Köln", "latin1"), /not text in UTF-8.*iconv/],
    ["zero bytes", "n.txt", Buffer.from("some words\0\0and more of them\0"), /not text: it has bytes of value 0/],
    ["zero bytes far behind", "o.txt", Buffer.from(`${"words\n".repeat(20_000)}\0`), /character 120000/],
    ["numbers only", "p.txt", Buffer.from([1, 0, 2, 1, 250, 3, 0, 9]), /not text/],
  ])("refuses %s by its name", async (_, name, content, message) => {
    await expect(documentsOf(name, content)).rejects.toThrow(message);
  });

  it.each([
    ["a JSON array that ends early", "a.json", '[{"text":"a"},{"text":"b"', /a\.json is not valid JSON/],
    ["text behind a JSON array", "b.json", '[{"text":"a"}] and more', /b\.json is not valid JSON/],
    ["a row with too few cells", "c.csv", "id,text\n1,a\n2\n", /c\.csv:3 is not valid CSV/],
    ["a quote that is not closed", "d.csv", 'id,text\n1,"a\n', /d\.csv.* is not valid CSV/],
    ["a column that is not there", "e.csv", "id,body\n1,a\n", /e\.csv has no column "text" \(it has: id, body\)/],
    ["a column twice", "f.csv", "text,text\n1,a\n", /two columns called "text"/],
  ])("refuses %s", async (_, name, content, message) => {
    await expect(documentsOf(name, content)).rejects.toThrow(message);
  });
});

describe("rows without text", () => {
  const lines = ['{"text":"a"}', '{"text":null}', '{"body":"b"}', '{"text":"  "}', '{"text":"c"}'].join("\n");

  it("are left out and counted", async () => {
    const notes: string[] = [];
    expect(await documentsOf("a.jsonl", lines, DOCUMENT_DEFAULTS, notes)).toEqual(whole("a", "c"));
    expect(notes).toEqual([
      expect.stringMatching(
        /a\.jsonl: 3 of 5 rows were left out: 2 without the field "text" or with null, 1 with empty text/,
      ),
    ]);
  });

  it("are an error when there is no other", async () => {
    await expect(documentsOf("a.jsonl", '{"text":null,"id":1}\n{"id":2}')).rejects.toThrow(
      /a\.jsonl:1 has no text in the field "text" \(it has: text, id\), nor has any of the 2 rows/,
    );
  });

  it("are said where a file has nothing else", async () => {
    const notes: string[] = [];
    for (const [name, content] of [
      ["empty.txt", ""],
      ["blank.txt", " \n\n "],
      ["empty.jsonl", "\n"],
    ] as const)
      expect(await documentsOf(name, content, DOCUMENT_DEFAULTS, notes)).toEqual([]);
    expect(notes).toEqual(
      ["empty.txt", "blank.txt", "empty.jsonl"].map((name) => expect.stringMatching(`${name}: there is no text in it`)),
    );
  });

  it("and damaged characters are said", async () => {
    const notes: string[] = [];
    const damaged = Buffer.concat([Buffer.from("word ".repeat(500)), Buffer.from([0xff])]);
    await documentsOf("a.txt", damaged, DOCUMENT_DEFAULTS, notes);
    expect(notes).toEqual([expect.stringMatching(/1 characters are not valid text/)]);
  });
});

describe("data arguments", () => {
  it.skipIf(process.platform === "win32")("are not pipes, which can be read once only", async () => {
    const pipe = path.join(directory, "pipe.jsonl");
    execFileSync("mkfifo", [pipe]);
    await expect(findDataFiles([pipe])).rejects.toThrow(/pipe\.jsonl is a pipe or a device.*write it to a file/);
  });

  it("are files, directories and globs", async () => {
    const root = path.join(directory, "tree");
    mkdirSync(path.join(root, "deep"), { recursive: true });
    for (const name of ["b.txt", "a.jsonl", "deep/c.txt.gz", "deep/d.csv.zst", "ignored.bin", "dataset_info.json"])
      writeFileSync(path.join(root, name), "x");
    const names = async (input: string) => (await findDataFiles([input])).map((file) => path.relative(root, file));
    expect(await names(root)).toEqual(["a.jsonl", "b.txt", "deep/c.txt.gz", "deep/d.csv.zst"]);
    expect(await names(path.join(root, "b.txt"))).toEqual(["b.txt"]);
    expect(await names(path.join(root, "**/*.txt*"))).toEqual(["b.txt", "deep/c.txt.gz"]);
    await expect(findDataFiles([path.join(root, "none*")])).rejects.toThrow(/no data found/);
    await expect(findDataFiles(["nowhere/stories"])).rejects.toThrow(/hf:\/\/datasets\/nowhere\/stories/);
    const file = path.join(root, "corpus-to-find.jsonl");
    writeFileSync(file, '{"text":"a"}\n');
    await expect(findDataFiles([file.replace("corpus", "corpse")])).rejects.toThrow(
      /Did you mean .*corpus-to-find\.jsonl\?/,
    );
    await expect(findDataFiles([`${file},${file}`])).rejects.toThrow(/separated by spaces, not by commas/);
  });
});
