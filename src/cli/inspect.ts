import type { Inspection } from "../jobs/index.js";
import { formatBytes, formatCount } from "../system/format.js";
import { action } from "./action.js";
import { command } from "./command.js";
import { adapters, common, MODEL } from "./options.js";
import { renderNotes, table } from "./table.js";

export const inspectCommand = command("inspect", "Describe a model: architecture, parameters, sizes, memory")
  .with(common, adapters)
  .argument("<model>", MODEL)
  .examples("coppice inspect mistralai/Mistral-Nemo-Base-2407")
  .action(
    action(async ({ job, print }, _flags, model: string) => {
      const { inspect } = await import("../jobs/inspect.js");
      print(await inspect(model, job), render);
    }),
  );

function render(result: Inspection): string {
  const types = Object.entries(result.types).map(([dtype, count]) => `${count} ${dtype}`);
  return [
    table(
      ["", ""],
      [
        ["architecture", result.architecture],
        ["can be", possibilities(result)],
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

function possibilities({ known, refused }: Inspection): string {
  if (!known) return "quantized, run with llama.cpp";
  return refused === undefined ? "pruned, distilled, measured, quantized, run" : "pruned, distilled, measured";
}
