import { Command } from "commander";
import { formatCount } from "../system/format.js";
import { action, example, table } from "./command.js";
import {
  addCommon,
  addData,
  addTarget,
  addValidation,
  type CommonFlags,
  type DataFlags,
  dataOptions,
  MODEL,
  parseBytes,
  type TargetFlags,
  targetOptions,
} from "./options.js";

interface Flags extends CommonFlags, DataFlags, TargetFlags {
  readonly out: string;
  readonly shardBytes?: number | undefined;
  readonly restart?: boolean | undefined;
}

export const pruneCommand = example(
  addCommon(
    addTarget(
      addValidation(addData(new Command("prune").description("Cut a model to a target, without training"), false)),
    ),
  )
    .argument("<model>", MODEL)
    .requiredOption("--out <dir>", "where the smaller model goes")
    .option("--shard-bytes <size>", "split the weights into files of about this size (default: 5GB)", parseBytes)
    .option("--restart", "discard what an earlier run has written to --out")
    .action(
      action(async ({ job, print }, flags: Flags, model: string) => {
        const { pruneModel } = await import("../jobs/prune.js");
        const outcome = await pruneModel({
          ...job,
          ...dataOptions(flags),
          ...targetOptions(flags),
          model,
          out: flags.out,
          restart: flags.restart,
          shardBytes: flags.shardBytes,
        });
        print(outcome, ({ parameters, plan, out }) =>
          [
            table(
              ["", "from", "to"],
              [
                ["parameters", formatCount(parameters.from), formatCount(parameters.to)],
                ...Object.entries(plan).map(([axis, { from, to }]) => [axis, String(from), String(to)]),
              ],
            ),
            `written to ${out}`,
          ].join("\n"),
        );
      }),
    ),
  "coppice prune ./model --target hidden=4096,ffn=11520 --data corpus.jsonl --out ./smaller",
);
