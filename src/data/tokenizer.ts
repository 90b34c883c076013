import { existsSync } from "node:fs";
import path from "node:path";
import { Tokenizer as NativeTokenizer } from "tokenizers";
import { readJsonObject, readLimited } from "../checkpoint/json.js";
import { CoppiceError, FormatError } from "../system/errors.js";
import { hashBytes } from "../system/files.js";

/** A token with a meaning of its own. */
export interface SpecialToken {
  readonly id: number;
  readonly text: string;
}

/** Converts texts to token ids and back. */
export interface TextTokenizer {
  readonly bos: SpecialToken | undefined;
  readonly eos: SpecialToken | undefined;
  /** The token ids of each text. @param addSpecialTokens whether to add those that a text begins or ends with */
  encode(texts: readonly string[], addSpecialTokens: boolean): Promise<number[][]>;
  decode(ids: readonly number[]): Promise<string>;
}

/** A checkpoint's tokenizer. */
export class Tokenizer implements TextTokenizer {
  /** Hash of its definition: the same hash gives the same ids. */
  readonly hash: string;
  readonly vocabSize: number;
  /** The token that encoding puts before a text, if any. */
  readonly beginToken: number | undefined;
  readonly bos: SpecialToken | undefined;
  readonly eos: SpecialToken | undefined;

  private constructor(
    private readonly native: NativeTokenizer,
    properties: Pick<Tokenizer, "hash" | "vocabSize" | "beginToken" | "bos" | "eos">,
  ) {
    this.hash = properties.hash;
    this.vocabSize = properties.vocabSize;
    this.beginToken = properties.beginToken;
    this.bos = properties.bos;
    this.eos = properties.eos;
  }

  /** Reads `tokenizer.json` of a model directory. @throws CoppiceError when there is none or it is invalid */
  static async load(directory: string): Promise<Tokenizer> {
    const file = path.join(directory, "tokenizer.json");
    if (!existsSync(file))
      throw new CoppiceError(
        `${directory} has no tokenizer.json; convert its tokenizer with transformers' \`save_pretrained\``,
      );
    const definition = Buffer.from(readLimited(file)).toString();
    let native: NativeTokenizer;
    try {
      native = NativeTokenizer.fromString(definition);
      native.disableTruncation();
      native.disablePadding();
    } catch (error) {
      throw new FormatError(`${file} is not a tokenizer (${error instanceof Error ? error.message : error})`);
    }
    const plain = (await native.encode("a", null, { addSpecialTokens: false })).getIds();
    const special = (await native.encode("a", null, { addSpecialTokens: true })).getIds();
    const beginToken = special.length > plain.length && special[0] !== plain[0] ? special[0] : undefined;
    const vocab = Object.values(native.getVocab(true));
    const largest = vocab.reduce((a, b) => Math.max(a, b), 0);
    const [bos, eos] = ["bos_token", "eos_token"].map((name) => specialToken(directory, native, name));
    return new Tokenizer(native, { hash: hashBytes(definition), vocabSize: largest + 1, beginToken, bos, eos });
  }

  /** The token ids of each text. Runs on native threads. */
  async encode(texts: readonly string[], addSpecialTokens: boolean): Promise<number[][]> {
    const encodings = await this.native.encodeBatch([...texts], { addSpecialTokens });
    return encodings.map((encoding) => encoding.getIds());
  }

  decode(ids: readonly number[]): Promise<string> {
    return this.native.decode([...ids], true);
  }
}

/** A special token that tokenizer_config.json names. */
function specialToken(directory: string, native: NativeTokenizer, name: string): SpecialToken | undefined {
  const file = path.join(directory, "tokenizer_config.json");
  if (!existsSync(file)) return undefined;
  const { [name]: token } = readJsonObject(file);
  const text = typeof token === "object" && token !== null ? (token as Record<string, unknown>).content : token;
  const id = typeof text === "string" ? native.tokenToId(text) : null;
  return typeof text === "string" && id !== null ? { id, text } : undefined;
}
