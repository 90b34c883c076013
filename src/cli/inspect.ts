import { Command } from "commander";
import type { Inspection } from "../jobs/index.js";
import { formatBytes, formatCount } from "../system/format.js";
import { action, example, renderNotes, table } from "./command.js";
import { addCommon, MODEL } from "./options.js";

export const inspectCommand = example(
  addCommon(new Command("inspect").description("Describe a model: architecture, parameters, sizes, memory"))
    .argument("<model>", MODEL)
    .action(
      action(async ({ job, print }, _flags, model: string) => {
        const { inspect } = await import("../jobs/measure.js");
        print(await inspect(model, job), render);
      }),
    ),
  "coppice inspect mistralai/Mistral-Nemo-Base-2407",
);

function render(result: Inspection): string {
  const types = Object.entries(result.types).map(([dtype, count]) => `${count} ${dtype}`);
  return [
    table(
      ["", ""],
      [
        ["architecture", result.architecture],
        ["can be", result.known ? "pruned, distilled, quantized, run" : "quantized, run with llama.cpp"],
        ["parameters", `${formatCount(result.parameters)} (${result.parameters})`],
        ["weights", formatBytes(result.bytes)],
        ["tensors", types.join(", ")],
        ["memory with a full context", formatBytes(result.memoryBytes)],
        ...Object.entries(result.dimensions).map(([name, size]) => [name, String(size)]),
      ],
    ),
    ...renderNotes(result.notes),
  ].join("\n");
}
