import { existsSync } from "node:fs";
import { DEVICES } from "../devices/profiles.js";
import { InterruptedError, UsageError } from "../system/errors.js";
import { writeFileAtomic } from "../system/files.js";
import { checkWritable, statOf } from "../system/places.js";
import { action } from "./action.js";
import { command, option } from "./command.js";
import { type CommonFlags, output } from "./options.js";

interface Flags extends CommonFlags {
  readonly model?: string | undefined;
  readonly data?: string[] | undefined;
  readonly target?: string | undefined;
  readonly out?: string | undefined;
}

/** What a recipe must say. */
interface Answers {
  readonly model: string;
  readonly data: readonly string[];
  readonly target: string;
  readonly out: string;
}

const DEFAULT_FILE = "recipe.yaml";
const DEFAULT_OUT = "./smaller";
const DEFAULT_TARGET = "0.67x";

export const initCommand = command("init", "Ask for model, data and device, and write a recipe for coppice compress")
  .argument("[file]", "where the recipe goes", DEFAULT_FILE)
  .option("--model <model>", "model directory, .gguf file or hub id: do not ask for it")
  .option("--data <paths...>", "files with text to calibrate and train on: do not ask for them")
  .addOption(
    option("--target <target>", "a device, or a target as --target of compress: do not ask for it").completes(() =>
      DEVICES.map(({ id }) => id),
    ),
  )
  .option("--out <dir>", `where the smaller model goes (default: ${DEFAULT_OUT})`)
  .with(output)
  .examples("coppice init", "coppice init phone.yaml --model ./model --data corpus.jsonl --target phone-8gb")
  .action(
    action(async ({ print }, flags: Flags, file: string) => {
      checkWritable(file, "the file of the recipe");
      if (statOf(file) !== undefined)
        throw new UsageError(`${file} is there already: name another file, coppice init FILE`);
      const answers = await complete(flags);
      writeFileAtomic(file, recipeText(answers, file));
      print({ file, ...answers }, () => `written to ${file}; next: coppice compress --recipe ${file}`);
    }),
  );

/** The answers that were given as options, and those to the questions that are left. */
async function complete({ model, data, target, out = DEFAULT_OUT }: Flags): Promise<Answers> {
  if (model !== undefined && data !== undefined && target !== undefined) return { model, data, target, out };
  if (!process.stdin.isTTY || !process.stderr.isTTY)
    throw new UsageError(
      "init asks questions, and this is not a terminal: pass --model, --data and --target as options",
    );
  const ask = await questions();
  return {
    model: model ?? (await ask.model()),
    data: data ?? (await ask.data()),
    target: target ?? (await ask.target()),
    out,
  };
}

/** The questions, loaded when one is asked. @throws InterruptedError on Ctrl-C */
async function questions() {
  const { isCancel, select, text } = await import("@clack/prompts");
  const shown = { output: process.stderr };
  const answered = <T>(answer: T): Exclude<T, symbol> => {
    if (isCancel(answer)) throw new InterruptedError("nothing was written");
    return answer as Exclude<T, symbol>;
  };
  const askText = async (message: string, placeholder: string, check: (answer: string) => string | undefined) =>
    answered(await text({ message, placeholder, validate: (answer = "") => check(answer.trim()), ...shown })).trim();
  return {
    model: () => askText("Which model is to become smaller?", "./model or org/name on the hub", complaintAboutModel),
    data: async () => wordsOf(await askText("Which texts is it for? (files)", "corpus.jsonl", complaintAboutData)),
    target: async () => {
      const target = answered(
        await select({
          message: "Where should it run, or how small should it be?",
          options: [
            ...DEVICES.map(({ id, name }) => ({ value: id, label: name, hint: id })),
            { value: DEFAULT_TARGET, label: "two thirds of its parameters", hint: DEFAULT_TARGET },
            { value: "", label: "another target", hint: "8.4B, 0.5x, 4GiB" },
          ],
          ...shown,
        }),
      );
      const needed = (answer: string) => (answer === "" ? "a target is needed" : undefined);
      return target === "" ? askText("Which target?", "8.4B, 0.5x or 4GiB", needed) : target;
    },
  };
}

/** File names, separated by spaces; one with spaces in quotes. */
const wordsOf = (text: string): string[] =>
  [...text.matchAll(/"([^"]+)"|'([^']+)'|(\S+)/g)].map(([, a, b, c]) => a ?? b ?? c ?? "");

function complaintAboutModel(answer: string): string | undefined {
  if (answer === "") return "a model is needed";
  const isHubId = /^(hf:\/\/)?[\w.-]+\/[\w.-]+(@[\w.-]+)?$/.test(answer) && !/^\.{1,2}\//.test(answer);
  return existsSync(answer) || isHubId ? undefined : `there is no ${answer}, and it is no hub id (organization/name)`;
}

function complaintAboutData(answer: string): string | undefined {
  const words = wordsOf(answer);
  if (words.length === 0) return "at least one file is needed";
  const missing = words.find((word) => !/[*?[{]|:\/\//.test(word) && !existsSync(word));
  return missing === undefined ? undefined : `there is no ${missing}`;
}

/** A text as YAML has it where it could be read as something else. JSON's strings are YAML's too. */
const scalar = (text: string): string =>
  /^[\w./~][\w./~:+-]*$/.test(text) && !text.endsWith(":") ? text : JSON.stringify(text);

/** A recipe with comments, and the settings that are changed most often, commented out. */
const recipeText = ({ model, data, target, out }: Answers, file: string): string => `# coppice compress --recipe ${file}
# Every option of \`coppice compress --help\` may stand here, without --; those on the command line win.

# A model directory, .gguf file or hub id.
model: ${scalar(model)}

# Text to calibrate and train on: files, directories, globs or hf://datasets/org/name.
data: [${data.map(scalar).join(", ")}]

# How small: a device (${DEVICES.map(({ id }) => id).join(", ")}),
# parameters (8.4B), a share (0.67x), bytes of weights (4GiB) or sizes (hidden=4096,ffn=11520).
target: ${scalar(target)}

# The run's directory; becomes the smaller model. A run that was stopped continues from it.
out: ${scalar(out)}

# Tokens to train on: more keep more quality, and take longer.
#tokens: 100M

# Held-out text for measurements (default: 2 % of the documents).
#validation: [held-out.jsonl]

# GGUF files to make of the result. A target that is a device makes the one that fits it.
#gguf: [q4_k_m, q8_0]

# Benchmarks to measure teacher, pruned model and student on.
#evaluate: [minitron]
`;
