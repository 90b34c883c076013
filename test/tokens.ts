import { mkdirSync, writeFileSync } from "node:fs";
import path from "node:path";
import { TokenStream } from "../src/data/index.js";

/** A stream of given ids, in a real shard file. */
export function streamOf(ids: readonly number[], directory: string, name = "stream"): TokenStream {
  mkdirSync(directory, { recursive: true });
  writeFileSync(path.join(directory, `${name}.bin`), new Uint8Array(Uint16Array.from(ids).buffer));
  const largestId = ids.reduce((a, b) => Math.max(a, b), 0);
  return TokenStream.open(directory, { files: [`${name}.bin`], length: ids.length, largestId }, 2, name);
}
