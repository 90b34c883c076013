import type { FloatDType } from "../ggml/index.js";
import { formatBytes } from "../system/format.js";
import { action } from "./action.js";
import { command, type OptionGroup, option } from "./command.js";
import { adapters, type CommonFlags, common, MODEL } from "./options.js";
import { parseBytes } from "./parse.js";
import { renderNotes } from "./table.js";

interface Flags extends CommonFlags {
  readonly out: string;
  readonly dtype?: FloatDType | undefined;
  readonly shardBytes?: number | undefined;
  readonly preTokenizer?: string | undefined;
  readonly overwrite?: boolean | undefined;
  readonly restart?: boolean | undefined;
}

/** Options of the commands that write GGUF files. */
export const writing: OptionGroup = (command) =>
  command
    .option("--shard-bytes <size>", "split into files of about this size, for example 4GiB (default: 48GB)", parseBytes)
    .option("--pre-tokenizer <name>", "llama.cpp's name for how texts are split into words, where it is not recognized")
    .option("--overwrite", "replace .gguf files that are there already");

export const exportCommand = command(
  "export",
  "Write a model as GGUF for llama.cpp, Ollama or LM Studio, or back as a directory",
)
  .with(writing, common, adapters)
  .argument("<model>", MODEL)
  .requiredOption("--out <path>", "a .gguf file, or a directory in Hugging Face's layout")
  .addOption(
    option("--dtype <type>", "type of the matrices (default: as stored; coppice quantize writes others)").choices([
      "f32",
      "f16",
      "bf16",
    ]),
  )
  .option("--restart", "discard what an earlier export has written to the directory --out")
  .examples("coppice export ./model --out model.gguf")
  .action(
    action(async ({ job, print }, flags: Flags, model: string) => {
      const { out, overwrite, restart, dtype, shardBytes, preTokenizer } = flags;
      const { exportModel } = await import("../jobs/export.js");
      const outcome = await exportModel({
        ...job,
        model,
        out,
        overwrite,
        restart,
        dtype,
        shardBytes,
        preTokenizer,
      });
      print(outcome, ({ files, bytes, notes, seconds }) =>
        [...files, `${formatBytes(bytes)} in ${seconds.toFixed(1)} s`, ...renderNotes(notes)].join("\n"),
      );
    }),
  );
