import { type DType, isQuantized, QUANTIZED_DTYPES, type QuantizedDType } from "../ggml/dtype.js";
import type { QuantizeOutcome } from "../jobs/index.js";
import { FILE_KINDS, type FileKind, parseFileKind } from "../quantize/recipes.js";
import { UsageError } from "../system/errors.js";
import { formatBytes } from "../system/format.js";
import { didYouMean } from "../system/suggest.js";
import { action } from "./action.js";
import { command, option } from "./command.js";
import { writing } from "./export.js";
import {
  adapters,
  type CommonFlags,
  common,
  type DataFlags,
  dataOptions,
  MODEL,
  memory,
  optionalData,
  validation,
} from "./options.js";
import { parseAtLeastOne, parseBytes } from "./parse.js";
import { renderNotes, table } from "./table.js";

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

/** Comma-separated kinds of files. */
export const parseFileKinds = (text: string): FileKind[] => text.split(",").map((name) => parseFileKind(name.trim()));

const parseTypes = (text: string): QuantizedDType[] =>
  text.split(",").map((name) => {
    const dtype = name.trim().toLowerCase();
    if (!isQuantized(dtype as DType))
      throw new UsageError(
        `there is no type ${name}; there are ${QUANTIZED_DTYPES.join(", ")}.${didYouMean(name, QUANTIZED_DTYPES)}`,
      );
    return dtype as QuantizedDType;
  });

export const quantizeCommand = command(
  "quantize",
  "Write a model as GGUF in fewer bits, to kinds of files or to a size",
)
  .with(optionalData, validation, writing, common, memory, adapters)
  .argument("<model>", MODEL)
  .requiredOption("--out <path>", "a .gguf file, or a directory for several")
  .addOption(
    option("--type <list>", `kinds of files: ${FILE_KINDS.join(", ")}`)
      .argParser(parseFileKinds)
      .completes(() => FILE_KINDS, { list: true }),
  )
  .option("--size <size>", "a file of at most this size, with the best type for each tensor: 4GiB", parseBytes)
  .addOption(
    option("--candidates <types>", "types that --size may choose from (default: those worth it)")
      .argParser(parseTypes)
      .completes(() => QUANTIZED_DTYPES, { list: true }),
  )
  .option("--probe", "measure one type of each tensor for --size and estimate the rest: faster, less exact")
  .option("--imatrix <file>", "importances to use, or where to keep them (default: measured on --data)")
  .option("--samples <n>", "calibration sequences for importances (default: 128)", parseAtLeastOne)
  .option("--cost-samples <n>", "sequences on which --size measures each type (default: 16)", parseAtLeastOne)
  .option("--sequence-length <n>", "tokens per sequence (default: 512, or the model's limit)", parseAtLeastOne)
  .option("--report", "measure perplexity, divergence and speed of every file")
  .examples(
    "coppice quantize ./model --type q4_k_m,q8_0 --data corpus.jsonl --report --out ./gguf",
    "coppice quantize ./model --size 4GiB --data corpus.jsonl --out model-4gib.gguf",
  )
  .action(
    action(async ({ job, print }, flags: Flags, model: string) => {
      const { out, overwrite, probe, samples, sequenceLength, report, shardBytes, preTokenizer } = flags;
      const forSize = [flags.probe, flags.candidates, flags.costSamples];
      if (flags.size === undefined && forSize.some((value) => value !== undefined))
        throw new UsageError(
          "--probe, --candidates and --cost-samples are for --size: without it types are not weighed",
        );
      const { quantize } = await import("../jobs/quantize.js");
      const outcome = await quantize({
        ...job,
        ...dataOptions(flags),
        model,
        out,
        overwrite,
        types: flags.type,
        sizeBytes: flags.size,
        candidateTypes: flags.candidates,
        probe,
        importanceFile: flags.imatrix,
        samples,
        sensitivitySamples: flags.costSamples,
        sequenceLength,
        report,
        shardBytes,
        preTokenizer,
      });
      print(outcome, render);
    }),
  );

type Measured = QuantizeOutcome["original"] | QuantizeOutcome["files"][number]["report"];

const measuredCells = (report: Measured): string[] =>
  report === undefined
    ? []
    : [
        report.perplexity.toFixed(4),
        report.divergence.toExponential(2),
        report.promptTokensPerSecond.toFixed(0),
        report.generationTokensPerSecond.toFixed(1),
      ];

function render({ original, files }: QuantizeOutcome): string {
  const head = ["", "size", "bits/weight", "seconds"];
  const rows = files.map(({ name, fileBytes, bitsPerWeight, seconds, report }) => [
    name,
    formatBytes(fileBytes),
    bitsPerWeight.toFixed(2),
    seconds.toFixed(1),
    ...measuredCells(report),
  ]);
  if (original !== undefined) {
    head.push("perplexity", "KL, nats/token", "prompt tok/s", "generation tok/s");
    rows.unshift(["unquantized", formatBytes(original.fileBytes), "", "", ...measuredCells(original)]);
  }
  const written = files.map(({ files: names, types }) => {
    const counts = Object.entries(types).map(([dtype, count]) => `${count} ${dtype}`);
    return `${names.join(", ")}: ${counts.join(", ")}`;
  });
  const notes = renderNotes([...new Set(files.flatMap((file) => file.notes))]);
  return [table(head, rows), ...written, ...notes].join("\n");
}
