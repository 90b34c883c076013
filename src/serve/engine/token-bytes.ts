import type { LlamaModel, Token } from "node-llama-cpp";

/**
 * Byte-level tokenizers write each byte as a character: printable ones as themselves, the others, in order, from U+0100 on (Radford et
 * al. 2019, GPT-2).
 */
const BYTE_OF_CHARACTER: ReadonlyMap<string, number> = (() => {
  const isPrintable = (byte: number) =>
    (byte >= 0x21 && byte <= 0x7e) || (byte >= 0xa1 && byte <= 0xac) || (byte >= 0xae && byte <= 0xff);
  let next = 0x100;
  return new Map(
    Array.from({ length: 256 }, (_, byte) => [String.fromCodePoint(isPrintable(byte) ? byte : next++), byte]),
  );
})();

/** The bytes of tokens, which may be only part of a character. */
export class TokenBytes {
  private readonly listed: readonly string[];
  private readonly isByteLevel: boolean;

  constructor(private readonly model: LlamaModel) {
    const { tokens, model: kind } = model.fileInfo.metadata.tokenizer.ggml;
    this.listed = tokens;
    this.isByteLevel = kind === "gpt2";
  }

  /** @param before tokens before it, which decide how it is written (whether a space comes first) */
  of(token: Token, before: readonly Token[]): Uint8Array {
    const listed = this.listed[token] ?? "";
    if (!this.model.isSpecialToken(token)) {
      const bytes = this.isByteLevel ? byteLevelBytes(listed) : fallbackByte(listed);
      if (bytes !== undefined) return bytes;
    }
    return Buffer.from(this.model.detokenize([token], true, before));
  }
}

function byteLevelBytes(listed: string): Uint8Array | undefined {
  const bytes = [...listed].map((character) => BYTE_OF_CHARACTER.get(character));
  return bytes.includes(undefined) ? undefined : Uint8Array.from(bytes as number[]);
}

/** SentencePiece has a token `<0xHH>` for each byte, for characters outside its vocabulary. */
function fallbackByte(listed: string): Uint8Array | undefined {
  const [, hex] = /^<0x([0-9A-Fa-f]{2})>$/.exec(listed) ?? [];
  return hex === undefined ? undefined : Uint8Array.of(Number.parseInt(hex, 16));
}

/** A token as text; bytes that are not valid UTF-8 become escapes, `\xf0\x9f`. */
export function tokenText(bytes: Uint8Array): string {
  try {
    return new TextDecoder("utf-8", { fatal: true, ignoreBOM: true }).decode(bytes);
  } catch {
    return [...bytes].map((byte) => `\\x${byte.toString(16).padStart(2, "0")}`).join("");
  }
}
