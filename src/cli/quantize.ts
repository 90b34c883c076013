import { Command } from "commander";
import { type DType, isQuantized, QUANTIZED_DTYPES, type QuantizedDType } from "../ggml/dtype.js";
import type { QuantizeOutcome } from "../jobs/index.js";
import { FILE_KINDS, type FileKind, parseFileKind } from "../quantize/recipes.js";
import { UsageError } from "../system/errors.js";
import { formatBytes } from "../system/format.js";
import { action, example, renderNotes, table } from "./command.js";
import { addWriting } from "./export.js";
import {
  addCommon,
  addData,
  addValidation,
  type CommonFlags,
  type DataFlags,
  dataOptions,
  MODEL,
  parseAtLeastOne,
  parseBytes,
} from "./options.js";

interface Flags extends CommonFlags, DataFlags {
  readonly out: string;
  readonly type?: FileKind[] | undefined;
  readonly size?: number | undefined;
  readonly candidates?: QuantizedDType[] | undefined;
  readonly probe?: boolean | undefined;
  readonly imatrix?: string | undefined;
  readonly samples?: number | undefined;
  readonly costSamples?: number | undefined;
  readonly sequenceLength?: number | undefined;
  readonly report?: boolean | undefined;
  readonly shardBytes?: number | undefined;
  readonly preTokenizer?: string | undefined;
  readonly overwrite?: boolean | undefined;
}

/** Kinds of files, separated by commas. */
export const parseFileKinds = (text: string): FileKind[] => text.split(",").map((name) => parseFileKind(name.trim()));

const parseTypes = (text: string): QuantizedDType[] =>
  text.split(",").map((name) => {
    const dtype = name.trim().toLowerCase();
    if (!isQuantized(dtype as DType))
      throw new UsageError(`there is no type ${name}; there are ${QUANTIZED_DTYPES.join(", ")}`);
    return dtype as QuantizedDType;
  });

export const quantizeCommand = example(
  addCommon(
    addWriting(
      addValidation(
        addData(
          new Command("quantize").description("Write a model as GGUF in fewer bits, to kinds of files or to a size"),
          false,
        ),
      ),
    ),
  )
    .argument("<model>", MODEL)
    .requiredOption("--out <path>", "a .gguf file, or a directory for several")
    .option("--type <list>", `kinds of files: ${FILE_KINDS.join(", ")}`, parseFileKinds)
    .option("--size <size>", "a file of at most this size, with the best type for each tensor: 4GiB", parseBytes)
    .option("--candidates <types>", "types that --size may choose from (default: those worth it)", parseTypes)
    .option("--probe", "measure one type of each tensor for --size and estimate the rest: faster, less exact")
    .option("--imatrix <file>", "importances to use, or where to keep them (default: measured on --data)")
    .option("--samples <n>", "calibration sequences for importances (default: 128)", parseAtLeastOne)
    .option("--cost-samples <n>", "sequences on which --size measures each type (default: 16)", parseAtLeastOne)
    .option("--sequence-length <n>", "tokens per sequence (default: 512, or the model's limit)", parseAtLeastOne)
    .option("--report", "measure perplexity, divergence and speed of every file")
    .action(
      action(async ({ job, print }, flags: Flags, model: string) => {
        const { quantize } = await import("../jobs/quantize.js");
        const outcome = await quantize({
          ...{ ...job, ...dataOptions(flags), model, out: flags.out, overwrite: flags.overwrite },
          ...(flags.type && { types: flags.type }),
          sizeBytes: flags.size,
          ...(flags.candidates && { candidateTypes: flags.candidates }),
          ...(flags.probe === true && { probe: true }),
          importanceFile: flags.imatrix,
          samples: flags.samples,
          sensitivitySamples: flags.costSamples,
          sequenceLength: flags.sequenceLength,
          ...(flags.report === true && { report: true }),
          shardBytes: flags.shardBytes,
          preTokenizer: flags.preTokenizer,
        });
        print(outcome, render);
      }),
    ),
  "coppice quantize ./model --type q4_k_m,q8_0 --data corpus.jsonl --report --out ./gguf",
  "coppice quantize ./model --size 4GiB --data corpus.jsonl --out model-4gib.gguf",
);

function render({ original, files }: QuantizeOutcome): string {
  const measured = (report: QuantizeOutcome["original"] | (typeof files)[number]["report"]): string[] =>
    report === undefined
      ? []
      : [
          report.perplexity.toFixed(4),
          report.divergence.toExponential(2),
          report.promptTokensPerSecond.toFixed(0),
          report.generationTokensPerSecond.toFixed(1),
        ];
  const head = ["", "size", "bits/weight", "seconds"];
  const more = original === undefined ? [] : ["perplexity", "KL, nats/token", "prompt tok/s", "generation tok/s"];
  const notes = new Set(files.flatMap((file) => file.notes));
  return [
    table(
      [...head, ...more],
      [
        ...(original === undefined
          ? []
          : [["unquantized", formatBytes(original.fileBytes), "", "", ...measured(original)]]),
        ...files.map((file) => [
          ...[file.name, formatBytes(file.fileBytes), file.bitsPerWeight.toFixed(2), file.seconds.toFixed(1)],
          ...measured(file.report),
        ]),
      ],
    ),
    ...files.map(({ files: names, types }) => {
      const counts = Object.entries(types).map(([dtype, count]) => `${count} ${dtype}`);
      return `${names.join(", ")}: ${counts.join(", ")}`;
    }),
    ...renderNotes([...notes]),
  ].join("\n");
}
