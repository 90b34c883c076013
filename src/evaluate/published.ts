import { elementAt } from "../system/arrays.js";

/** Published scores of other models, in percent, on the tasks of the suite `minitron`. */
export interface PublishedModel {
  readonly model: string;
  /** By task. */
  readonly scores: Readonly<Record<string, number>>;
  readonly source: string;
}

const columns = [
  "winogrande",
  "arc_challenge",
  "mmlu",
  "hellaswag",
  "gsm8k",
  "truthfulqa_mc2",
  "xlsum_english",
  "mbpp",
  "humaneval",
];
const published = (model: string, ...values: number[]): PublishedModel => ({
  model,
  scores: Object.fromEntries(columns.map((task, i) => [task, elementAt(values, i)])),
  source: "NVIDIA, Mistral-NeMo-Minitron 8B (arXiv 2408.11796 and its announcement)",
});

export const PUBLISHED: readonly PublishedModel[] = [
  published("Mistral-NeMo-Minitron 8B", 80.35, 64.42, 69.51, 83.03, 58.45, 47.56, 31.94, 43.77, 36.22),
  published("Mistral NeMo 12B", 82.24, 65.1, 68.99, 85.16, 56.41, 49.79, 33.43, 42.63, 23.78),
  published("Llama 3.1 8B", 77.27, 57.94, 65.28, 81.8, 48.6, 45.06, 30.05, 42.27, 24.76),
  published("Gemma 7B", 78, 61, 64, 82, 50, 45, 17, 39, 32),
];
