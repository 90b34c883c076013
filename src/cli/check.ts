import type { Comparison } from "../check/compare.js";
import type { CheckOutcome } from "../jobs/check.js";
import { CoppiceError } from "../system/errors.js";
import { action } from "./action.js";
import { command } from "./command.js";
import { type CommonFlags, common, devices } from "./options.js";
import { parsePattern } from "./parse.js";
import { table } from "./table.js";

interface Flags extends CommonFlags {
  readonly only?: RegExp | undefined;
}

export const checkCommand = command(
  "check",
  "Compare what a device computes with the processor, op by op and in training",
)
  .with(common, devices)
  .option("--only <pattern>", "only comparisons whose names match a regular expression", parsePattern)
  .examples("coppice check --device cuda", 'coppice check --device vulkan --only "^training|linear by q4"')
  .action(
    action(async ({ job, print }, { only }: Flags) => {
      const { check } = await import("../jobs/check.js");
      const outcome = await check({ ...job, only });
      print(outcome, render);
      const wrong = outcome.comparisons.filter(isWrong);
      if (wrong.length > 0)
        throw new CoppiceError(
          `${outcome.machine.chosenDevice} computes ${wrong.length} of ${outcome.comparisons.length} wrongly: ${wrong.map(({ name }) => name).join("; ")}. Use another --device, and report it with \`coppice doctor --bundle\``,
        );
    }),
  );

const isWrong = ({ isClose, isRefused = false }: Comparison): boolean => !isClose && !isRefused;

/** How many of the largest differences are shown. */
const SHOWN = 8;

function render({ machine, comparisons, seconds }: CheckOutcome): string {
  const rank = ({ difference }: Comparison) => difference ?? Number.POSITIVE_INFINITY;
  const rows = [...comparisons]
    .sort((a, b) => rank(b) - rank(a))
    .filter(({ isClose }, i) => !isClose || i < SHOWN)
    .map((comparison) => [
      comparison.name,
      comparison.failure ?? comparison.difference?.toExponential(1) ?? "not finite",
      isWrong(comparison) ? "wrong" : "",
    ]);
  const close = comparisons.filter(({ isClose }) => isClose).length;
  return [
    table(["largest differences", "", ""], rows),
    `${close} of ${comparisons.length} are the processor's, on ${machine.chosenDevice}, in ${seconds.toFixed(0)} s`,
  ].join("\n");
}
