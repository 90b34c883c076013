import { BENCH_WORK, type BenchWork } from "../jobs/bench-work.js";
import type { BenchOutcome } from "../jobs/index.js";
import { formatBytes, formatCount } from "../system/format.js";
import type { OptimizerState } from "../tensor/index.js";
import { action } from "./action.js";
import { command, option } from "./command.js";
import { adapters, type CommonFlags, common, devices, optimizerMemory } from "./options.js";
import { parseAtLeastOne } from "./parse.js";
import { table } from "./table.js";

interface Flags extends CommonFlags {
  readonly work: BenchWork;
  readonly sequenceLength?: number | undefined;
  readonly batchSize?: number | undefined;
  readonly steps?: number | undefined;
  readonly compute: "f32" | "bf16";
  readonly recompute?: boolean | undefined;
  readonly optimizerState?: OptimizerState | undefined;
  readonly freeGradients?: boolean | undefined;
  readonly profile?: boolean | undefined;
}

export const benchCommand = command("bench", "Time training, calibration or a forward pass on this machine")
  .with(common, devices, adapters)
  .argument("<model>", "a model whose sizes to take, or sizes: hidden=288,ffn=768,layers=6,heads=6,vocab=32000")
  .addOption(option("--work <kind>", "what to time").choices(BENCH_WORK).default("distill"))
  .option("--sequence-length <n>", "tokens per sequence (default: 256, or the model's limit)", parseAtLeastOne)
  .option("--batch-size <n>", "sequences per step (default: 4)", parseAtLeastOne)
  .option("--steps <n>", "timed steps; the median counts (default: 5)", parseAtLeastOne)
  .addOption(option("--compute <type>", "number type of matrix products").choices(["f32", "bf16"]).default("bf16"))
  .option("--recompute", "compute activations again instead of keeping them: less memory, more time")
  .with(optimizerMemory)
  .option("--profile", "print how long each kind of operation takes")
  .examples(
    "coppice bench hidden=288,ffn=768,layers=6,heads=6,vocab=32000 --profile",
    "coppice bench ./model --work calibrate",
  )
  .action(
    action(async ({ job, print }, flags: Flags, model: string) => {
      const { work, sequenceLength, batchSize, steps, compute: computeType, recompute, profile } = flags;
      const { optimizerState, freeGradients } = flags;
      const { bench } = await import("../jobs/bench.js");
      const outcome = await bench({
        ...job,
        model,
        work,
        computeType,
        sequenceLength,
        batchSize,
        steps,
        recompute,
        optimizerState,
        freeGradients,
        profile,
      });
      print(outcome, render);
    }),
  );

const rate = (flops: number): string => `${(flops / 1e9).toFixed(0)} GFLOP/s`;

function render(o: BenchOutcome): string {
  const summary = table(
    ["", ""],
    [
      [
        "work",
        `${o.work}, ${formatCount(o.parameters)} parameters, ${o.batchSize} x ${o.sequenceLength} tokens, ${o.computeType}`,
      ],
      ["on", `${o.device}, ${o.threads} threads, kernels: ${o.kernels ?? "ggml's own"}`],
      ["a step", `${(o.medianSeconds * 1000).toFixed(1)} ms (median of ${o.seconds.length})`],
      ["speed", `${formatCount(o.tokensPerSecond)} tokens/s`],
      [
        "model operations",
        `${rate(o.modelFlops)}, ${(100 * o.share).toFixed(0)} % of the ${rate(o.peakFlops)} of a large product`,
      ],
      ["memory", `${formatBytes(o.memoryBytes)} resident at most`],
    ],
  );
  if (o.profile === undefined || o.profile.length === 0) return summary;
  const total = o.profile.reduce((sum, { seconds }) => sum + seconds, 0);
  const rows = o.profile
    .filter(({ seconds }) => seconds / total > 0.001)
    .map(({ op, seconds, count }) => [
      op,
      (seconds * 1000).toFixed(1),
      `${((100 * seconds) / total).toFixed(1)} %`,
      String(count),
    ]);
  return `${summary}\n${table(["operation", "ms", "share", "times"], rows)}`;
}
