import { readFileSync } from "node:fs";
import { Command } from "commander";
import type { SamplingOptions } from "../generate/index.js";
import { type FileKind, parseFileKind } from "../quantize/recipes.js";
import { action, example } from "./command.js";
import {
  addCommon,
  type CommonFlags,
  MODEL,
  parseAtLeastOne,
  parseNonNegative,
  parsePositive,
  parseWhole,
} from "./options.js";

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

export const addSampling = (command: Command): Command =>
  command
    .option("--max-tokens <n>", "tokens to write at most (default: 256)", parseAtLeastOne)
    .option("--temperature <x>", "0 takes the likeliest token always (default: 0.8)", parseNonNegative)
    .option("--top-k <n>", "choose among the n likeliest (default: 40)", parseWhole)
    .option("--top-p <x>", "choose among the likeliest that make up this probability (default: 0.95)", parsePositive)
    .option("--min-p <x>", "leave out what is less than this share as likely as the likeliest", parsePositive)
    .option("--repeat-penalty <x>", "make what came lately less likely (default: 1, not at all)", parsePositive)
    .option("--seed <n>", "same seed, same text", parseWhole)
    .option("--stop <texts...>", "texts to stop at")
    .option(
      "--type <kind>",
      "what to export a directory to first, for example q8_0 (default: as stored)",
      parseFileKind,
    )
    .option(
      "--context-size <n>",
      "tokens of prompt and answer together (default: the model's, 4096 at most)",
      parseAtLeastOne,
    )
    .option("--draft <model>", "a smaller model of the same tokenizer that guesses ahead")
    .option("--draft-tokens <n>", "tokens it guesses ahead at most (default: 8)", parseAtLeastOne);

export function samplingOptions(flags: SamplingFlags): SamplingOptions {
  const names = ["maxTokens", "temperature", "topK", "topP", "minP", "repeatPenalty", "seed", "stop"] as const;
  return Object.fromEntries(names.flatMap((name) => (flags[name] === undefined ? [] : [[name, flags[name]]])));
}

export const engineOptions = (flags: SamplingFlags) => ({
  ...(flags.type && { kind: flags.type }),
  contextSize: flags.contextSize,
  draftModel: flags.draft,
  draftTokens: flags.draftTokens,
});

interface Flags extends SamplingFlags {
  readonly prompt?: string | undefined;
  readonly parseSpecial: boolean;
}

export const generateCommand = example(
  addCommon(addSampling(new Command("generate").description("Continue a text")))
    .argument("<model>", MODEL)
    .option("--prompt <text>", "the text to continue (default: standard input)")
    .option("--no-parse-special", "read special tokens that are written out in the prompt as plain text")
    .action(
      action(async ({ job, print }, flags: Flags, model: string) => {
        const prompt = flags.prompt ?? readFileSync(0, "utf8");
        const stream = flags.json !== true;
        let begun = false;
        const show = (text: string) => {
          process.stdout.write(begun ? text : prompt + text); // nothing before the model is there
          begun = true;
        };
        const { generate } = await import("../jobs/generate.js");
        const outcome = await generate({
          ...{ ...job, ...engineOptions(flags), model, prompt },
          sampling: {
            ...samplingOptions(flags),
            parseSpecial: flags.parseSpecial,
            ...(stream && { onText: show }),
          },
        });
        const { tokens, tokensPerSecond, draft, withoutDraft } = outcome;
        process.stderr.write(`${stream ? "\n" : ""}${tokens} tokens, ${tokensPerSecond.toFixed(1)} tokens/s\n`);
        if (draft !== undefined && withoutDraft !== undefined)
          process.stderr.write(
            `the draft guessed ${draft.guessed} tokens, ${draft.accepted} right (${((100 * draft.accepted) / Math.max(1, draft.guessed)).toFixed(0)} %): ` +
              `${withoutDraft.speedUp.toFixed(2)} times as fast as the ${withoutDraft.tokensPerSecond.toFixed(1)} tokens/s without\n`,
          );
        print(outcome, () => "");
      }),
    ),
  'coppice generate ./model --prompt "Once upon a time" --temperature 0',
  'coppice generate teacher.gguf --draft student.gguf --prompt "Once upon a time"',
);
