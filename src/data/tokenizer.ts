import { existsSync } from "node:fs";
import path from "node:path";
import { Tokenizer as NativeTokenizer } from "tokenizers";
import { chatTemplateIn } from "../checkpoint/index.js";
import { readLimited, readOptionalJson } from "../checkpoint/json.js";
import { CoppiceError, FormatError } from "../system/errors.js";
import { hashBytes } from "../system/files.js";
import { ChatTemplate } from "./chat-template.js";

/** A token with a meaning of its own. */
export interface SpecialToken {
  readonly id: number;
  readonly text: string;
}

/** Converts texts to token ids and back. */
export interface TextTokenizer {
  readonly bos: SpecialToken | undefined;
  readonly eos: SpecialToken | undefined;
  /** The tokens that end an answer: instruct models have several. */
  readonly ends: ReadonlySet<number>;
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
  /** The tokens that encoding puts after a text. */
  readonly endTokens: readonly number[];
  readonly bos: SpecialToken | undefined;
  readonly eos: SpecialToken | undefined;
  readonly ends: ReadonlySet<number>;
  /** The chat template (Jinja) of the model. */
  readonly chatTemplateSource: string | undefined;

  private constructor(
    private readonly native: NativeTokenizer,
    private readonly directory: string,
    properties: Pick<
      Tokenizer,
      "hash" | "vocabSize" | "beginToken" | "endTokens" | "bos" | "eos" | "ends" | "chatTemplateSource"
    >,
  ) {
    this.hash = properties.hash;
    this.vocabSize = properties.vocabSize;
    this.beginToken = properties.beginToken;
    this.endTokens = properties.endTokens;
    this.bos = properties.bos;
    this.eos = properties.eos;
    this.ends = properties.ends;
    this.chatTemplateSource = properties.chatTemplateSource;
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
    const place = special.findIndex((_, i) => plain.every((id, j) => special[i + j] === id));
    const vocab = Object.values(native.getVocab(true));
    const largest = vocab.reduce((a, b) => Math.max(a, b), 0);
    const [bos, eos] = ["bos_token", "eos_token"].map((name) => specialToken(directory, native, name));
    const stops = [readOptionalJson(directory, "generation_config.json").eos_token_id].flat();
    const ends = new Set([eos?.id, ...stops].filter((id) => typeof id === "number"));
    return new Tokenizer(native, directory, {
      hash: hashBytes(definition),
      vocabSize: largest + 1,
      beginToken,
      endTokens: place < 0 ? [] : special.slice(place + plain.length),
      bos,
      eos,
      ends,
      chatTemplateSource: chatTemplateIn(directory),
    });
  }

  /** What turns conversations into texts; undefined where the model has none. @throws FormatError when it cannot be read */
  chatTemplate(): ChatTemplate | undefined {
    const specials = { bos: this.bos?.text ?? "", eos: this.eos?.text ?? "" };
    return this.chatTemplateSource === undefined
      ? undefined
      : new ChatTemplate(this.chatTemplateSource, specials, this.directory);
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

/** A special token that the tokenizer's files name, or whose id is in the model's; null in the former means that there is none. */
function specialToken(directory: string, native: NativeTokenizer, name: string): SpecialToken | undefined {
  for (const file of ["tokenizer_config.json", "special_tokens_map.json"]) {
    const { [name]: token } = readOptionalJson(directory, file);
    if (token === undefined) continue;
    const text = typeof token === "object" && token !== null ? (token as Record<string, unknown>).content : token;
    const id = typeof text === "string" ? native.tokenToId(text) : null;
    return typeof text === "string" && id !== null ? { id, text } : undefined;
  }
  for (const file of ["generation_config.json", "config.json"]) {
    const [id] = [readOptionalJson(directory, file)[`${name}_id`]].flat();
    const text = typeof id === "number" && Number.isInteger(id) && id >= 0 ? native.idToToken(id) : null;
    if (typeof id === "number" && text !== null) return { id, text };
  }
  return undefined;
}
