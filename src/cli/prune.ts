import type { PruneOutcome } from "../jobs/index.js";
import { formatCount } from "../system/format.js";
import { action } from "./action.js";
import { command } from "./command.js";
import {
  adapters,
  type CommonFlags,
  common,
  type DataFlags,
  dataOptions,
  MODEL,
  memory,
  optionalData,
  type TargetFlags,
  target,
  targetOptions,
  validation,
} from "./options.js";
import { parseBytes } from "./parse.js";
import { table } from "./table.js";

interface Flags extends CommonFlags, DataFlags, TargetFlags {
  readonly out: string;
  readonly shardBytes?: number | undefined;
  readonly restart?: boolean | undefined;
}

export const pruneCommand = command("prune", "Cut a model to a target, without training")
  .with(optionalData, validation, target, common, memory, adapters)
  .argument("<model>", MODEL)
  .requiredOption("--out <dir>", "where the smaller model goes")
  .option("--shard-bytes <size>", "split the weights into files of about this size (default: 5GB)", parseBytes)
  .option("--restart", "discard what an earlier run has written to --out")
  .examples("coppice prune ./model --target hidden=4096,ffn=11520 --data corpus.jsonl --out ./smaller")
  .action(
    action(async ({ job, print }, flags: Flags, model: string) => {
      const { out, restart, shardBytes } = flags;
      const { pruneModel } = await import("../jobs/prune.js");
      const outcome = await pruneModel({
        ...job,
        ...dataOptions(flags),
        ...targetOptions(flags),
        model,
        out,
        restart,
        shardBytes,
      });
      print(outcome, render);
    }),
  );

const render = ({ parameters, plan, out }: PruneOutcome): string =>
  [
    table(
      ["", "from", "to"],
      [
        ["parameters", formatCount(parameters.from), formatCount(parameters.to)],
        ...Object.entries(plan).map(([axis, { from, to }]) => [axis, String(from), String(to)]),
      ],
    ),
    `written to ${out}`,
  ].join("\n");
