import { readFileSync } from "node:fs";
import type { SamplingOptions } from "../generate/index.js";
import type { GenerateOutcome } from "../jobs/index.js";
import { FILE_KINDS, type FileKind, parseFileKind } from "../quantize/recipes.js";
import { UsageError } from "../system/errors.js";
import { action } from "./action.js";
import { command, type OptionGroup, option } from "./command.js";
import { adapters, type CommonFlags, common, defined, MODEL } from "./options.js";
import { parseAtLeastOne, parseNonNegative, parsePositive, parseWhole } from "./parse.js";

export interface SamplingFlags extends CommonFlags {
  readonly maxTokens?: number | undefined;
  readonly temperature?: number | undefined;
  readonly topK?: number | undefined;
  readonly topP?: number | undefined;
  readonly minP?: number | undefined;
  readonly repeatPenalty?: number | undefined;
  readonly seed?: number | undefined;
  readonly stop?: string[] | undefined;
  readonly type?: FileKind | undefined;
  readonly contextSize?: number | undefined;
  readonly draft?: string | undefined;
  readonly draftTokens?: number | undefined;
}

export const sampling: OptionGroup = (command) =>
  command
    .option(
      "--max-tokens <n>",
      "tokens to write at most (default: 256, in a chat 2048 for each answer)",
      parseAtLeastOne,
    )
    .option("--temperature <x>", "0 always takes the most probable token (default: 0.8)", parseNonNegative)
    .option("--top-k <n>", "choose among the n most probable (default: 40)", parseWhole)
    .option(
      "--top-p <x>",
      "choose among the most probable that make up this probability (default: 0.95)",
      parsePositive,
    )
    .option("--min-p <x>", "leave out what is less than this share as probable as the most probable", parsePositive)
    .option("--repeat-penalty <x>", "make recent tokens less probable (default: 1, not at all)", parsePositive)
    .option("--seed <n>", "same seed, same text", parseWhole)
    .option("--stop <texts...>", "texts to stop at")
    .addOption(
      option("--type <kind>", "what to export a directory to first, for example q8_0 (default: as stored)")
        .argParser(parseFileKind)
        .completes(() => FILE_KINDS),
    )
    .option(
      "--context-size <n>",
      "tokens of prompt and answer together (default: the model's, 4096 at most)",
      parseAtLeastOne,
    )
    .option("--draft <model>", "a smaller model of the same tokenizer that guesses ahead")
    .option("--draft-tokens <n>", "tokens it guesses ahead at most (default: 8)", parseAtLeastOne);

export function samplingOptions(flags: SamplingFlags): SamplingOptions {
  const { maxTokens, temperature, topK, topP, minP, repeatPenalty, seed, stop } = flags;
  return defined({ maxTokens, temperature, topK, topP, minP, repeatPenalty, seed, stop });
}

export function engineOptions({ type, contextSize, draft, draftTokens }: SamplingFlags) {
  if (draft === undefined && draftTokens !== undefined)
    throw new UsageError("--draft-tokens is for --draft: without a draft nobody guesses");
  return { kind: type, contextSize, draftModel: draft, draftTokens };
}

interface Flags extends SamplingFlags {
  readonly prompt?: string | undefined;
  readonly parseSpecial: boolean;
}

export const generateCommand = command("generate", "Continue a text")
  .with(sampling, common, adapters)
  .argument("<model>", MODEL)
  .option("--prompt <text>", "the text to continue (default: standard input)")
  .option("--no-parse-special", "read special tokens that are written out in the prompt as plain text")
  .onOptions(([, text]) => {
    if (text !== undefined)
      throw new UsageError(`the text to continue is given as --prompt ${JSON.stringify(text)}, or on standard input`);
  })
  .examples(
    'coppice generate ./model --prompt "Once upon a time" --temperature 0',
    'coppice generate teacher.gguf --draft student.gguf --prompt "Once upon a time"',
  )
  .action(
    action(async ({ job, print }, flags: Flags, model: string) => {
      const { prompt = readFileSync(0, "utf8"), parseSpecial } = flags;
      const onText = flags.json === true ? undefined : afterPrompt(prompt);
      const { generate } = await import("../jobs/generate.js");
      const outcome = await generate({
        ...job,
        ...engineOptions(flags),
        model,
        prompt,
        sampling: { ...samplingOptions(flags), parseSpecial, onText },
      });
      process.stderr.write(`${onText === undefined ? "" : "\n"}${renderSpeed(outcome, flags.seed !== undefined)}\n`);
      print(outcome, () => "");
      job.signal?.throwIfAborted(); // the text is cut
    }),
  );

/** Writes text as it comes, with the prompt before its first piece: nothing is written before the model is loaded. */
function afterPrompt(prompt: string): (text: string) => void {
  let first = true;
  return (text) => {
    process.stdout.write(first ? prompt + text : text);
    first = false;
  };
}

function renderSpeed({ tokens, tokensPerSecond, draft, withoutDraft }: GenerateOutcome, isSeeded: boolean): string {
  const speed = `${tokens} tokens, ${tokensPerSecond.toFixed(1)} tokens/s`;
  if (draft === undefined || withoutDraft === undefined) return speed;
  const { guessed, accepted } = draft;
  if (guessed === 0 && isSeeded)
    return `${speed}\nthe draft guessed nothing: a text with a seed is written without guesses`;
  const share = ((100 * accepted) / Math.max(1, guessed)).toFixed(0);
  return `${speed}\nthe draft guessed ${guessed} tokens, ${accepted} right (${share} %): ${withoutDraft.speedUp.toFixed(2)} times as fast as the ${withoutDraft.tokensPerSecond.toFixed(1)} tokens/s without`;
}
