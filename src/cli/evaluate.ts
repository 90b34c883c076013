import { InvalidArgumentError } from "commander";
import { metricKey } from "../evaluate/metrics.js";
import { EVALUATION_ENGINES, type EvaluateOutcome, type EvaluationEngine } from "../jobs/evaluation.js";
import { formatScore, resultLines } from "../jobs/evaluation-table.js";
import { action } from "./action.js";
import { command, option } from "./command.js";
import { adapters, type CommonFlags, common, MODEL, memory } from "./options.js";
import { parseAtLeastOne, parseNames, parsePositive, parseWhole } from "./parse.js";
import { renderComparison } from "./render.js";
import { table } from "./table.js";

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

const TASKS = "tasks, groups, suites, task files, comma-separated; name:N takes N worked examples";
const ENGINES = "what computes likelihoods; llama.cpp for .gguf files only (default: coppice)";

/** Names of tasks, groups and suites, for completion. */
export const taskNames = async (): Promise<readonly string[]> => (await import("../jobs/task-names.js")).TASK_NAMES;

export const evaluateCommand = command(
  "evaluate",
  "Measure models on benchmarks, as lm-evaluation-harness defines them",
)
  .with(common, memory, adapters)
  .argument("<models...>", `${MODEL}, or http://host/v1[#name] of an OpenAI-compatible server`)
  .addOption(
    option("--tasks <names>", TASKS)
      .argParser(parseNames)
      .default(["minitron"], "minitron")
      .completes(taskNames, { list: true }),
  )
  .option("--limit <n>", "documents of each task at most, or that share of them where below 1", parsePositive)
  .option("--num-fewshot <n>", "worked examples before each question (default: the task's)", parseWhole)
  .option("--max-length <n>", "longest sequence in tokens (default: the model's)", parseAtLeastOne)
  .option("--max-gen-tokens <n>", "longest generated text in tokens (default: the task's)", parseAtLeastOne)
  .option("--samples <n>", "programs drawn for each programming problem, for pass@k (default: 1)", parseSamples)
  .option("--temperature <x>", "of drawn programs (default: 0 for one, 0.2 for several)", parsePositive)
  .option("--data <directory>", "benchmark data, DATASET/CONFIG/SPLIT.jsonl, looked at before the hub")
  .option("--out <directory>", "write results and samples in the harness's layout, and report.html")
  .addOption(option("--engine <name>", ENGINES).choices(EVALUATION_ENGINES))
  .addOption(option("--compute <type>", "number type of matrix products (default: f32)").choices(["f32", "bf16"]))
  .option("--restart", "ask everything again, for example when a server has another model now")
  .option("--published", "add the scores that Minitron's authors published")
  .examples(
    "coppice evaluate meta-llama/Llama-3.2-1B ./student --tasks minitron --limit 100 --published --out scores",
    "coppice evaluate student-Q4_K_M.gguf --tasks arc_challenge,hellaswag,mbpp:0",
    "coppice evaluate http://localhost:8000/v1 --tasks gsm8k,humaneval",
  )
  .action(
    action(async ({ job, print }, flags: Flags, models: string[]) => {
      const { tasks, limit, maxLength, samples, temperature, data, out, engine, published, restart } = flags;
      const { evaluate } = await import("../jobs/evaluate.js");
      const result = await evaluate({
        ...job,
        models,
        tasks,
        limit,
        fewShot: flags.numFewshot,
        maxLength,
        maxTokens: flags.maxGenTokens,
        samples,
        temperature,
        data,
        out,
        engine,
        computeType: flags.compute,
        published,
        restart,
      });
      print(result, (outcome) => renderEvaluation(outcome, published === true));
    }),
  );

function renderEvaluation({ models, out }: EvaluateOutcome, published: boolean): string {
  const lines = models.flatMap((model) => [`${model.model} (${model.seconds.toFixed(0)} s)`, scoreTable(model)]);
  if (models.length > 1 || published) lines.push(renderComparison(models, published));
  if (out !== undefined) lines.push(`results, samples and report in ${out}`);
  return lines.join("\n");
}

/** A line for each metric; what concerns the task as a whole stands in its first. */
function scoreTable(model: EvaluateOutcome["models"][number]): string {
  const rows = resultLines(model).flatMap(({ name, fewShot, metrics, documents, requests, cached, seconds }) =>
    metrics.map((result, i) => {
      const score = [metricKey(result.metric), formatScore(result)];
      if (i > 0) return ["", ...score, "", "", "", ""];
      return [`${name} (${fewShot})`, ...score, documents, `${requests}`, `${cached}`, seconds.toFixed(1)];
    }),
  );
  return table(["task (worked examples)", "metric", "score", "documents", "requests", "cached", "seconds"], rows);
}
