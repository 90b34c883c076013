import { Command, InvalidArgumentError, Option } from "commander";
import { metricKey } from "../evaluate/metrics.js";
import { EVALUATION_ENGINES, type EvaluateOutcome, type EvaluationEngine } from "../jobs/evaluation.js";
import { formatScore, resultLines } from "../jobs/evaluation-table.js";
import { action, example, table } from "./command.js";
import {
  addCommon,
  type CommonFlags,
  MODEL,
  parseAtLeastOne,
  parseNames,
  parsePositive,
  parseWhole,
} from "./options.js";
import { renderComparison } from "./render.js";

interface Flags extends CommonFlags {
  readonly tasks: string[];
  readonly limit?: number | undefined;
  readonly numFewshot?: number | undefined;
  readonly maxLength?: number | undefined;
  readonly maxGenTokens?: number | undefined;
  readonly samples?: number | undefined;
  readonly temperature?: number | undefined;
  readonly data?: string | undefined;
  readonly out?: string | undefined;
  readonly engine?: EvaluationEngine | undefined;
  readonly compute?: "f32" | "bf16" | undefined;
  readonly published?: boolean | undefined;
  readonly restart?: boolean | undefined;
}

function parseSamples(text: string): number {
  const value = parseWhole(text);
  if (value < 1 || value > 1000) throw new InvalidArgumentError("a number from 1 to 1000 is needed.");
  return value;
}

export const evaluateCommand = example(
  addCommon(new Command("evaluate").description("Measure models on benchmarks, as lm-evaluation-harness defines them"))
    .argument("<models...>", `${MODEL}, or http://host/v1[#name] of an OpenAI-compatible server`)
    .addOption(
      new Option(
        "--tasks <names>",
        "tasks, groups, suites, task files, comma-separated; name:N takes N worked examples",
      )
        .argParser(parseNames)
        .default(["minitron"], "minitron"),
    )
    .option("--limit <n>", "documents of each task at most, or that share of them where below 1", parsePositive)
    .option("--num-fewshot <n>", "worked examples before each question (default: the task's)", parseWhole)
    .option("--max-length <n>", "longest sequence in tokens (default: the model's)", parseAtLeastOne)
    .option("--max-gen-tokens <n>", "longest generated text in tokens (default: the task's)", parseAtLeastOne)
    .option("--samples <n>", "programs drawn for each programming problem, for pass@k (default: 1)", parseSamples)
    .option("--temperature <x>", "of drawn programs (default: 0 for one, 0.2 for several)", parsePositive)
    .option("--data <directory>", "benchmark data, DATASET/CONFIG/SPLIT.jsonl, looked at before the hub")
    .option("--out <directory>", "write results and samples in the harness's layout, and report.html")
    .addOption(
      new Option(
        "--engine <name>",
        "what gives likelihoods; llama.cpp for .gguf files only (default: coppice)",
      ).choices(EVALUATION_ENGINES),
    )
    .addOption(new Option("--compute <type>", "number type of matrix products (default: f32)").choices(["f32", "bf16"]))
    .option("--restart", "ask everything again, for example a server that has another model now")
    .option("--published", "put the scores that Minitron's authors published below")
    .action(
      action(async ({ job, print }, flags: Flags, models: string[]) => {
        const { tasks, limit, numFewshot: fewShot, maxLength, maxGenTokens: maxTokens, samples, temperature } = flags;
        const { data, out, engine, compute: computeType, published, restart } = flags;
        const { evaluate } = await import("../jobs/evaluate.js");
        const result = await evaluate({
          ...job,
          ...{ models, tasks, limit, fewShot, maxLength, maxTokens, samples, temperature },
          ...{ data, out, engine, computeType, published, restart },
        });
        print(result, (outcome) => renderEvaluation(outcome, published === true));
      }),
    ),
  "coppice evaluate meta-llama/Llama-3.2-1B ./student --tasks minitron --limit 100 --published --out scores",
  "coppice evaluate student-Q4_K_M.gguf --tasks arc_challenge,hellaswag,mbpp:0",
  "coppice evaluate http://localhost:8000/v1 --tasks gsm8k,humaneval",
);

function renderEvaluation({ models, out }: EvaluateOutcome, published: boolean): string {
  const lines = models.flatMap((model) => [
    `${model.model} (${model.seconds.toFixed(0)} s)`,
    table(
      ["task (worked examples)", "metric", "score", "documents", "requests", "cached", "seconds"],
      resultLines(model).flatMap(({ name, fewShot, metrics, documents, requests, cached, seconds }) =>
        metrics.map((result, i) => [
          i === 0 ? `${name} (${fewShot})` : "",
          ...[metricKey(result.metric), formatScore(result)],
          ...(i === 0 ? [documents, `${requests}`, `${cached}`, seconds.toFixed(1)] : ["", "", "", ""]),
        ]),
      ),
    ),
  ]);
  if (models.length > 1 || published) lines.push(renderComparison(models, published));
  if (out !== undefined) lines.push(`results, samples and report in ${out}`);
  return lines.join("\n");
}
