import { Command, Option } from "commander";
import type { FloatDType } from "../ggml/index.js";
import { formatBytes } from "../system/format.js";
import { action, example, renderNotes } from "./command.js";
import { addCommon, type CommonFlags, MODEL, parseBytes } from "./options.js";

interface Flags extends CommonFlags {
  readonly out: string;
  readonly dtype?: FloatDType | undefined;
  readonly shardBytes?: number | undefined;
  readonly preTokenizer?: string | undefined;
  readonly overwrite?: boolean | undefined;
  readonly restart?: boolean | undefined;
}

/** Options of what writes GGUF files. */
export const addWriting = (command: Command): Command =>
  command
    .option("--shard-bytes <size>", "split into files of about this size, for example 4GiB (default: 48GB)", parseBytes)
    .option("--pre-tokenizer <name>", "llama.cpp's name for how texts are cut into words, where it is not recognised")
    .option("--overwrite", "replace .gguf files that are there already");

export const exportCommand = example(
  addCommon(
    addWriting(
      new Command("export").description(
        "Write a model as GGUF, for llama.cpp, Ollama, LM Studio, or back as a directory",
      ),
    ),
  )
    .argument("<model>", MODEL)
    .requiredOption("--out <path>", "a .gguf file, or a directory for Hugging Face's layout")
    .addOption(
      new Option("--dtype <type>", "type of the matrices (default: as stored)").choices(["f32", "f16", "bf16"]),
    )
    .option("--restart", "discard what an earlier export has written to the directory --out")
    .action(
      action(async ({ job, print }, flags: Flags, model: string) => {
        const { out, overwrite, restart } = flags;
        const { exportModel } = await import("../jobs/export.js");
        const outcome = await exportModel({
          ...{ ...job, model, out, overwrite, restart },
          ...(flags.dtype && { dtype: flags.dtype }),
          shardBytes: flags.shardBytes,
          preTokenizer: flags.preTokenizer,
        });
        print(outcome, ({ files, bytes, notes, seconds }) =>
          [`${files.join("\n")}\n${formatBytes(bytes)} in ${seconds.toFixed(1)} s`, ...renderNotes(notes)].join("\n"),
        );
      }),
    ),
  "coppice export ./model --out model.gguf",
);
