import { closeSync, fsyncSync, openSync } from "node:fs";
import path from "node:path";
import { writeAll } from "../system/files.js";
import type { Document } from "./documents.js";
import type { Tokenizer } from "./tokenizer.js";

/** Tokens per shard file. */
export const SHARD_TOKENS = 2 ** 28;

/** Writes ids to consecutive shard files. */
export class ShardWriter {
  readonly files: string[] = [];
  length = 0;
  largestId = 0;
  private handle: number | undefined;
  private readonly buffer: Uint16Array | Uint32Array;
  private filled = 0;

  constructor(
    private readonly directory: string,
    private readonly name: string,
    bytesPerToken: 2 | 4,
  ) {
    this.buffer = bytesPerToken === 2 ? new Uint16Array(1 << 16) : new Uint32Array(1 << 16);
  }

  append(ids: readonly number[]): void {
    for (const id of ids) {
      if (this.filled === this.buffer.length) this.flush();
      this.buffer[this.filled++] = id;
      this.length++;
      if (id > this.largestId) this.largestId = id;
      if (this.length % SHARD_TOKENS === 0) this.close();
    }
  }

  private flush(): void {
    if (this.filled === 0) return;
    if (this.handle === undefined) {
      const file = `${this.name}-${String(this.files.length).padStart(5, "0")}.bin`;
      this.handle = openSync(path.join(this.directory, file), "w");
      this.files.push(file);
    }
    writeAll(this.handle, new Uint8Array(this.buffer.buffer, 0, this.filled * this.buffer.BYTES_PER_ELEMENT));
    this.filled = 0;
  }

  close(): void {
    this.flush();
    if (this.handle === undefined) return;
    fsyncSync(this.handle);
    closeSync(this.handle);
    this.handle = undefined;
  }
}

/** Documents are separated by the tokens that the tokenizer adds before or after them; where it adds none, by an end token. */
export const separatorOf = ({ beginToken, endTokens, eos }: Tokenizer): number | undefined =>
  beginToken === undefined && endTokens.length === 0 ? eos?.id : undefined;

/** Writes documents with the tokens that separate them. */
export class DocumentWriter {
  private readonly separator: number | undefined;
  /** The stream of a document to which tokens are to be added after its last part. */
  private unended: ShardWriter | undefined;

  constructor(
    private readonly tokenizer: Tokenizer,
    private readonly streamOf: (document: Document) => ShardWriter,
  ) {
    this.separator = separatorOf(tokenizer);
  }

  /** Encodes documents, or parts of them, and writes them. Call it in order, then {@link end}. */
  async write(batch: readonly Document[]): Promise<void> {
    const { beginToken, endTokens } = this.tokenizer;
    const isPlain = ({ continues, said }: Document) => !continues && said === undefined;
    const encode = (which: (document: Document) => boolean, addSpecialTokens: boolean) =>
      this.tokenizer.encode(
        batch.filter(which).map(({ text }) => text),
        addSpecialTokens,
      );
    const beginnings = (await encode(isPlain, true)).values();
    // templates write the tokens that conversations begin and end with
    const others = (await encode((document) => !isPlain(document), false)).values();
    for (const document of batch) {
      const { continues, said } = document;
      let ids = (isPlain(document) ? beginnings : others).next().value ?? [];
      if (isPlain(document)) ids = ids.slice(0, ids.length - endTokens.length);
      if (said !== undefined && !continues && beginToken !== undefined && ids[0] !== beginToken)
        ids.unshift(beginToken);
      if (!continues) this.end();
      const stream = this.streamOf(document);
      if (!continues && this.separator !== undefined && stream.length > 0) stream.append([this.separator]);
      stream.append(ids);
      this.unended = said === undefined ? stream : undefined;
    }
  }

  /** Ends the last document. */
  end(): void {
    this.unended?.append(this.tokenizer.endTokens);
    this.unended = undefined;
  }
}
