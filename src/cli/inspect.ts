import { Command } from "commander";
import { inspect } from "../jobs/index.js";
import { formatBytes, formatCount } from "../jobs/report.js";
import { action, example, table } from "./command.js";
import { addCommon, MODEL } from "./options.js";

export const inspectCommand = example(
  addCommon(new Command("inspect").description("Describe a model: architecture, parameters, sizes, memory"))
    .argument("<model>", MODEL)
    .action(
      action(async ({ job, print }, _flags, model: string) => {
        print(await inspect(model, job), (result) =>
          table(
            ["", ""],
            [
              ["architecture", result.architecture],
              ["parameters", `${formatCount(result.parameters)} (${result.parameters})`],
              ["weights", formatBytes(result.bytes)],
              ["memory with a full context", formatBytes(result.memoryBytes)],
              ...Object.entries(result.dimensions).map(([name, size]) => [name, String(size)]),
            ],
          ),
        );
      }),
    ),
  "coppice inspect mistralai/Mistral-Nemo-Base-2407",
);
