import type { z } from "zod";
import { FormatError } from "../system/errors.js";
import { complaint } from "../system/schema.js";
import type { Metric, Value } from "./metrics.js";
import type { Reply, Request } from "./requests.js";

/** Where a benchmark's rows come from. */
export interface DatasetReference {
  /** `organisation/name` on the hub. */
  readonly repo: string;
  /** The configuration (subset) of it; the only one where none is named. */
  readonly config?: string | undefined;
}

/** The splits that a benchmark uses. It is measured on `test`, or else `validation`. */
export interface Splits {
  readonly train?: string | undefined;
  readonly validation?: string | undefined;
  readonly test?: string | undefined;
  /** Where worked examples come from: this, or else the first there is of train, validation, test. */
  readonly fewShot?: string | undefined;
}

/** A benchmark. See `defineTask` and its kind's function (multipleChoice, generation, ...) for how to make one. */
export interface Task {
  readonly name: string;
  /** Changes when its scores are no longer comparable; the harness's where it has the task. */
  readonly version: number;
  readonly dataset: DatasetReference;
  readonly splits: Splits;
  readonly fewShot: FewShot;
  /** Measured on so many documents, or that share of them where below 1, unless the caller says otherwise. */
  readonly limit?: number | undefined;
  readonly metrics: readonly Metric[];
  readonly asks: "likelihood" | "generation";
  /** @throws FormatError naming what of the row is not as it must be */
  read(row: unknown): Question;
}

export interface FewShot {
  /** Worked examples before each question, unless the caller says otherwise. */
  readonly count: number;
  /** Drawn anew for each question, or always the first. */
  readonly sampler: "random" | "first";
  /** What stands before everything. */
  readonly description?: string | undefined;
  /** Which rows of the split may be taken; all by default. */
  readonly accepts?: ((row: unknown) => boolean) | undefined;
}

/** A row of a benchmark, read. */
export interface Question {
  /** How it reads as a worked example, without what separates it from the next. */
  readonly shot: string;
  /** What is right, for the record. */
  readonly target: string | number;
  requests(prefix: string, settings: RequestSettings): Request[];
  /** The value of each metric, by its key. Gets the replies in the order of the requests. */
  score(replies: readonly Reply[], tools: ScoringTools): Scores | Promise<Scores>;
}

export type Scores = Readonly<Record<string, Value>>;

/** What the caller may change about requests. */
export interface RequestSettings {
  /** Longest generated text in tokens; the task's by default. */
  readonly maxTokens?: number | undefined;
  /** What the model can hold. A task's own length of text that leaves no room for a prompt becomes half of it. */
  readonly maxLength?: number | undefined;
  /** Programs that are drawn for each problem. */
  readonly samples: number;
  readonly temperature?: number | undefined;
}

/** What scoring needs beside the replies. */
export interface ScoringTools {
  /** Whether a Python program ends without an error. It is run where it can do no harm. */
  readonly passes: (program: string) => Promise<boolean>;
}

/** What all kinds of tasks have in common. */
export interface TaskFacts<Row> {
  readonly name: string;
  readonly version: number;
  readonly dataset: DatasetReference;
  readonly splits: Splits;
  /** The columns that are used. */
  readonly schema: z.ZodType<Row>;
  readonly fewShot?: Partial<FewShot> | undefined;
  readonly limit?: number | undefined;
}

/** A task from its facts and what makes a question of a row. */
export function defineTask<Row>(
  facts: TaskFacts<Row>,
  rest: Pick<Task, "metrics" | "asks"> & { readonly question: (row: Row) => Question },
): Task {
  const { name, version, dataset, splits, schema, fewShot, limit } = facts;
  const { metrics, asks, question } = rest;
  return {
    ...{ name, version, dataset, splits, metrics, asks },
    fewShot: { count: 0, sampler: "random", ...fewShot },
    limit,
    read: (row) => {
      const parsed = schema.safeParse(row);
      if (parsed.success) return question(parsed.data);
      const columns = typeof row === "object" && row !== null ? Object.keys(row).join(", ") : typeof row;
      throw new FormatError(`the row ${complaint(parsed.error, row)} (it has: ${columns})`);
    },
  };
}
