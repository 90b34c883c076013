import { Command } from "commander";
import { plan } from "../jobs/index.js";
import { formatCount } from "../jobs/report.js";
import { UNIFORM_AXES } from "../prune/index.js";
import { action, example, table } from "./command.js";
import {
  addCommon,
  addData,
  addTarget,
  addValidation,
  type CommonFlags,
  type DataFlags,
  dataOptions,
  type TargetFlags,
  targetOptions,
} from "./options.js";

type Flags = CommonFlags & DataFlags & TargetFlags;

export const planCommand = example(
  addCommon(
    addTarget(
      addValidation(
        addData(
          new Command("plan").description(
            "List the smaller architectures that meet a target, ranked by loss if there is data",
          ),
          false,
        ),
      ),
    ),
  )
    .argument("<model>", "model directory, directory with a config.json, or hub id")
    .action(
      action(async ({ job, print }, flags: Flags, model: string) => {
        const outcome = await plan({ ...job, ...dataOptions(flags), ...targetOptions(flags), model });
        print(outcome, ({ candidates, parameters, original }) =>
          [
            `${formatCount(parameters)} parameters now: ${UNIFORM_AXES.map((axis) => `${axis}=${original[axis]}`).join(", ")}`,
            table(
              [...UNIFORM_AXES, "parameters", "loss as pruned", "distilled briefly"],
              candidates.map((c) => [
                ...UNIFORM_AXES.map((axis) => String(c.sizes[axis])),
                String(c.parameters),
                c.loss?.toFixed(4) ?? "-",
                c.distilledLoss?.toFixed(4) ?? "-",
              ]),
            ),
          ].join("\n"),
        );
      }),
    ),
  "coppice plan ./mistral-nemo --target 8.4B",
  "coppice plan ./model --target 0.67x --axes hidden,ffn,layers --data corpus.jsonl",
);
