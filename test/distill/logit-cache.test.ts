import { readdirSync, readFileSync, rmSync, truncateSync, writeFileSync } from "node:fs";
import path from "node:path";
import { describe, expect, it } from "vitest";
import { LogitCache } from "../../src/distill/logit-cache.js";
import { temporaryDirectory } from "../temporary.js";

const root = temporaryDirectory();
let created = 0;
const place = () => path.join(root, String(created++));
const open = (directory: string) => new LogitCache(directory, { description: {}, expectedBytes: 0 });
const entry = (length: number, value: number) => new Uint8Array(length).fill(value);

describe("a cache of logits", () => {
  it("gives entries of any size by their number, in the process that wrote them and in later ones", () => {
    const directory = place();
    const cache = open(directory);
    expect(cache.get(5)).toBeUndefined();
    cache.put(5, entry(3, 1));
    cache.put(0, entry(70_000, 2));
    cache.put(9, entry(1, 3));
    const check = (one: LogitCache) => {
      expect(one.get(5)).toEqual(entry(3, 1));
      expect(one.get(0)).toEqual(entry(70_000, 2));
      expect(one.get(9)).toEqual(entry(1, 3));
      for (const missing of [1, 4, 10, 1000]) expect(one.get(missing)).toBeUndefined();
      one.close();
    };
    check(cache);
    check(open(directory));
  });

  it("is filled by several at once, none of which writes over the other's entries", () => {
    const directory = place();
    const [a, b] = [open(directory), open(directory)];
    for (let number = 0; number < 20; number++) (number % 2 === 0 ? a : b).put(number, entry(number + 1, number));
    for (const one of [a, b, open(directory)]) {
      for (let number = 0; number < 20; number++) expect(one.get(number)).toEqual(entry(number + 1, number));
      one.close();
    }
  });

  it("lacks what a crash has cut short or damaged, and takes it again", () => {
    const directory = place();
    const cache = open(directory);
    for (let number = 0; number < 3; number++) cache.put(number, entry(10, number));
    cache.close();
    const file = path.join(directory, "entries-1.bin");
    const bytes = readFileSync(file);
    bytes[12] = 77; // in the second entry
    writeFileSync(file, bytes);
    truncateSync(file, 25);
    const again = open(directory);
    expect(again.get(0)).toEqual(entry(10, 0));
    for (const number of [1, 2]) {
      expect(again.get(number)).toBeUndefined();
      again.put(number, entry(10, number));
      expect(again.get(number)).toEqual(entry(10, number));
    }
    again.close();
    rmSync(file);
    const last = open(directory);
    expect([0, 1, 2].map((number) => last.get(number)?.[0])).toEqual([undefined, 1, 2]);
    last.close();
    expect(readdirSync(directory).sort()).toEqual(["cache.json", "entries-2.bin", "index-1.bin", "index-2.bin"]);
  });

  it("takes entries after its files were opened anew", () => {
    const cache = open(place());
    cache.put(0, entry(4, 1));
    cache.refresh();
    cache.put(1, entry(5, 2));
    expect([cache.get(0), cache.get(1)]).toEqual([entry(4, 1), entry(5, 2)]);
    cache.close();
  });

  it("lacks an entry of whose record in the index only the beginning was written", () => {
    const directory = place();
    const cache = open(directory);
    cache.put(0, entry(4, 1));
    cache.put(1, entry(4, 2));
    cache.close();
    const index = readFileSync(path.join(directory, "index-1.bin"));
    index.fill(0, index.length / 2 + 12); // where the system had made the file longer, but had not written it
    writeFileSync(path.join(directory, "index-1.bin"), index);
    const again = open(directory);
    expect([again.get(0), again.get(1)]).toEqual([entry(4, 1), undefined]);
    again.close();
  });

  it("says which of some entries it lacks, each once, after another process has added some", () => {
    const directory = place();
    const [a, b] = [open(directory), open(directory)];
    b.put(3, entry(2, 1));
    a.put(7, entry(2, 2));
    expect(a.missing([9, 3, 7, 1, 9])).toEqual([9, 1]);
    a.close();
    b.close();
  });

  it("lacks an entry whose place in the index was cut short", () => {
    const directory = place();
    const cache = open(directory);
    cache.put(0, entry(4, 1));
    cache.close();
    truncateSync(path.join(directory, "index-1.bin"), 19);
    const again = open(directory);
    expect(again.get(0)).toBeUndefined();
    again.close();
  });
});
