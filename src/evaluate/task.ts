import type { z } from "zod";
import { FormatError } from "../system/errors.js";
import { describeSchemaError } from "../system/schema.js";
import type { Metric, MetricValue } from "./metrics.js";
import type { Reply, Request } from "./requests.js";

/** Where a benchmark's rows come from. */
export interface DatasetReference {
  /** `organization/name` on the hub. */
  readonly repo: string;
  /** Its configuration (subset); by default its only one. */
  readonly config?: string | undefined;
}

/** The splits that a benchmark uses. It is measured on `test`, or on `validation` where there is no `test`. */
export interface Splits {
  readonly train?: string | undefined;
  readonly validation?: string | undefined;
  readonly test?: string | undefined;
  /** Where worked examples come from; by default the first of train, validation and test that is named. */
  readonly fewShot?: string | undefined;
}

/** A benchmark. Make one with the function of its kind (multipleChoice, generation, ...), or with {@link defineTask}. */
export interface Task {
  readonly name: string;
  /** Changes when scores stop being comparable; the harness's version where it has the task. */
  readonly version: number;
  readonly dataset: DatasetReference;
  readonly splits: Splits;
  readonly fewShot: FewShot;
  /** How many documents to measure, or which share of them when below 1, unless the caller chooses. */
  readonly limit?: number | undefined;
  readonly metrics: readonly Metric[];
  readonly asks: "likelihood" | "generation";
  /** @throws FormatError naming the column that is wrong */
  read(row: unknown): Question;
}

/** How worked examples are chosen. */
export interface FewShot {
  /** Number of worked examples before each question, unless the caller chooses. */
  readonly count: number;
  /** Whether the benchmark is without examples whatever the caller chooses: its prompts have their own, or could give answers away. */
  readonly none?: boolean | undefined;
  /** Drawn anew for each question, or always the first. */
  readonly sampler: "random" | "first";
  /** The text before the first example. */
  readonly description?: string | undefined;
  /** Selects usable rows of the split; all by default. */
  readonly accepts?: ((row: unknown) => boolean) | undefined;
}

/** A parsed row of a benchmark. */
export interface Question {
  /** Its text as a worked example, without the separator to the next. */
  readonly shot: string;
  /** The right answer, for the record. */
  readonly target: string | number;
  requests(prefix: string, settings: RequestSettings): Request[];
  /** The value of each metric, by its key. @param replies in the order of the requests */
  score(replies: readonly Reply[], tools: ScoringTools): MetricValues | Promise<MetricValues>;
}

/** A document's value for each metric, by the metric's key. */
export type MetricValues = Readonly<Record<string, MetricValue>>;

/** Settings of requests that the caller may choose. */
export interface RequestSettings {
  /** Limit of generated text in tokens; the task's by default. */
  readonly maxTokens?: number | undefined;
  /** The model's length in tokens. A task's limit that leaves no room for a prompt becomes half of it. */
  readonly maxLength?: number | undefined;
  /** Number of programs generated for each problem. */
  readonly samples: number;
  readonly temperature?: number | undefined;
}

/** What scoring needs besides the replies. */
export interface ScoringTools {
  /** Whether a Python program ends without an error; must run it where it can do no harm. */
  readonly passes: (program: string) => Promise<boolean>;
}

/** The fields common to all kinds of tasks. */
export interface TaskFacts<Row> {
  readonly name: string;
  readonly version: number;
  readonly dataset: DatasetReference;
  readonly splits: Splits;
  /** The columns in use. */
  readonly schema: z.ZodType<Row>;
  readonly fewShot?: Partial<FewShot> | undefined;
  readonly limit?: number | undefined;
}

/** Makes a task from its facts and a function that makes a question of a row. */
export function defineTask<Row>(
  facts: TaskFacts<Row>,
  rest: Pick<Task, "metrics" | "asks"> & { readonly question: (row: Row) => Question },
): Task {
  const { name, version, dataset, splits, schema, fewShot, limit } = facts;
  const { metrics, asks, question } = rest;
  return {
    name,
    version,
    dataset,
    splits,
    metrics,
    asks,
    fewShot: { count: 0, sampler: "random", ...fewShot },
    limit,
    read: (row) => {
      const parsed = schema.safeParse(row);
      if (parsed.success) return question(parsed.data);
      const columns = typeof row === "object" && row !== null ? Object.keys(row).join(", ") : typeof row;
      throw new FormatError(`the row ${describeSchemaError(parsed.error, row)} (it has: ${columns})`);
    },
  };
}
