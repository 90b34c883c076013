import { readFileSync } from "node:fs";
import path from "node:path";
import {
  type GroupResult,
  type Metric,
  type MetricResult,
  metricKey,
  type Reply,
  type Request,
  type Sample,
  type Task,
  type TaskResult,
} from "../evaluate/index.js";
import { hashBytes } from "../system/files.js";
import { packageRoot } from "../system/package-root.js";
import type { EvaluateJob, ModelEvaluation, PlannedTask } from "./evaluation.js";

/** Results and samples in the format of lm-evaluation-harness 0.4.13 (`--output_path`, `--log_samples`), for scripts that read it. */

const HARNESS_VERSION = "0.4.13";
const UNKNOWN = "N/A";

/** A file name with a date: results_2026-01-31T12-00-00.000.json */
export const harnessFile = (kind: string, date: Date, extension: string): string =>
  `${kind}_${date.toISOString().replaceAll(":", "-").replace("Z", "")}.${extension}`;

const scoresOf = (metrics: readonly MetricResult[]): Record<string, number | string> =>
  Object.fromEntries(
    metrics.flatMap(({ metric, value, standardError }) => [
      [metricKey(metric), value],
      [`${metric.name}_stderr,${metric.filter}`, standardError ?? UNKNOWN],
    ]),
  );

/** The content of a results file. @param planned the tasks in the order of the evaluation's results */
export function harnessResults(
  { model, parameters, tasks: results, groups, seconds }: ModelEvaluation,
  planned: readonly PlannedTask[],
  job: EvaluateJob,
  date: Date,
): Record<string, unknown> {
  const perTask = <T>(of: (result: TaskResult, planned: PlannedTask) => T): Record<string, T> =>
    Object.fromEntries(planned.map((task, i) => [task.label, of(results[i] as TaskResult, task)]));
  const higherIsBetter = (metrics: readonly Metric[]) =>
    Object.fromEntries(metrics.map((metric) => [metric.name, metric.higherIsBetter]));
  // measured with several numbers of examples, a group has several scores
  const labelOf = ({ group, fewShot }: GroupResult): string =>
    groups.filter((other) => other.group === group).length > 1 ? `${group}_${fewShot}shot` : group;
  const perGroup = <T>(of: (group: GroupResult) => T): Record<string, T> =>
    Object.fromEntries(groups.map((each) => [labelOf(each), of(each)]));
  const groupScores = perGroup(({ group, metrics }) => ({ name: group, alias: group, ...scoresOf(metrics) }));
  const { version } = JSON.parse(readFileSync(path.join(packageRoot, "package.json"), "utf8")) as { version: string };
  return {
    results: {
      ...groupScores,
      ...perTask(({ task, metrics, documents }) => ({
        name: task,
        alias: task,
        sample_len: documents.measured,
        ...scoresOf(metrics),
      })),
    },
    groups: groups.length > 0 ? groupScores : undefined,
    group_subtasks: {
      ...perGroup(({ members }) => members),
      ...perTask(() => []),
    },
    configs: perTask((result, { task }) => taskConfig(result, task, job)),
    versions: {
      ...perGroup((group) => group.version),
      ...perTask((result) => result.version),
    },
    "n-shot": { ...perGroup((group) => group.fewShot), ...perTask((result) => result.fewShot) },
    higher_is_better: {
      ...perGroup(({ metrics }) => higherIsBetter(metrics.map(({ metric }) => metric))),
      ...perTask((_, { task }) => higherIsBetter(task.metrics)),
    },
    "n-samples": perTask(({ documents }) => ({ original: documents.all, effective: documents.measured })),
    config: configOf(model, parameters, job),
    git_hash: null,
    date: date.getTime() / 1000,
    coppice_version: version,
    lm_eval_version: HARNESS_VERSION,
    max_length: job.maxLength ?? null,
    model_source: "coppice",
    model_name: model,
    model_name_sanitized: folderName(model),
    total_evaluation_time_seconds: `${seconds}`,
  };
}

/** One of the harness's `configs`: a task and its options. */
const taskConfig = ({ task, fewShot, version, data }: TaskResult, definition: Task, job: EvaluateJob) => ({
  task,
  dataset_path: definition.dataset.repo,
  dataset_name: definition.dataset.config,
  dataset_versions: data,
  num_fewshot: fewShot,
  repeats: job.samples ?? 1,
  output_type: definition.asks === "generation" ? "generate_until" : "loglikelihood",
  metric_list: definition.metrics.map(({ name, aggregation, higherIsBetter: higher_is_better }) => ({
    metric: name,
    aggregation,
    higher_is_better,
  })),
  metadata: { version },
});

/** The harness's `config`: the options of the evaluation. */
const configOf = (model: string, parameters: number | undefined, job: EvaluateJob) => ({
  model: "coppice",
  model_args: `pretrained=${model}`,
  model_num_parameters: parameters ?? null,
  batch_size: "auto",
  device: job.device ?? "auto",
  limit: job.limit ?? null,
  bootstrap_iters: 100_000,
  gen_kwargs: { max_gen_toks: job.maxTokens, temperature: job.temperature },
  random_seed: 0,
  numpy_seed: 1234,
  torch_seed: 1234,
  fewshot_seed: 1234,
});

/** As long as names of folders may be, with what other names add. */
const MOST_NAME_BYTES = 200;

/** A model's name as the name of a folder, as in the harness, but never that of a hidden one, nor longer than a file system takes. */
export const folderName = (model: string): string => {
  const name = model.replaceAll(/["<>:/|\\?*[\]]+/g, "__").replace(/^[._]+/, "");
  return Buffer.from(name)
    .subarray(0, MOST_NAME_BYTES)
    .toString()
    .replace(/\ufffd$/, "");
};

/** A document's records in a samples file, one for each filter. */
export function harnessSample(sample: Sample, task: Task): Record<string, unknown>[] {
  const { id, row, target, requests, replies, scores } = sample;
  const filters = [...new Set(task.metrics.map(({ filter }) => filter))];
  const responses = replies.map(formatReply);
  return filters.map((filter) => {
    const metrics = task.metrics.filter((metric) => metric.filter === filter && metricKey(metric) in scores);
    return {
      doc_id: id,
      doc: row,
      target: String(target),
      arguments: Object.fromEntries(requests.map((request, i) => [`gen_args_${i}`, argumentsOf(request)])),
      resps: responses.map((response) => [response]),
      filtered_resps: responses,
      filter,
      metrics: metrics.map(({ name }) => name),
      doc_hash: hashBytes(JSON.stringify(row, null, 2) ?? ""),
      prompt_hash: hashBytes(Object.values(requests[0] === undefined ? {} : argumentsOf(requests[0]))[0] ?? ""),
      target_hash: hashBytes(String(target)),
      ...Object.fromEntries(metrics.map((metric) => [metric.name, scores[metricKey(metric)]])),
    };
  });
}

const formatReply = (reply: Reply): string | string[] =>
  typeof reply === "string" ? reply : [`${reply.logLikelihood}`, reply.isGreedy ? "True" : "False"];

function argumentsOf(request: Request): Record<string, string> {
  if (request.kind === "rolling") return { arg_0: request.text };
  if (request.kind === "log-likelihood") return { arg_0: request.context, arg_1: request.continuation };
  const { context, kind: _, ...settings } = request;
  return { arg_0: context, arg_1: JSON.stringify(settings) };
}
