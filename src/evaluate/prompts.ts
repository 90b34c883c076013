import { UsageError } from "../system/errors.js";
import { PythonRandom } from "./python-random.js";
import type { Task } from "./task.js";

/** The harness's seed for drawing few-shot examples. */
const FEW_SHOT_SEED = 1234;
const SEPARATOR = "\n\n";

/** The split that a task is measured on. */
export const testSplit = ({ splits }: Task): string => splits.test ?? splits.validation ?? "test";

/** The split that worked examples come from. */
export const fewShotSplit = ({ splits }: Task): string =>
  splits.fewShot ?? splits.train ?? splits.validation ?? splits.test ?? "test";

/** Rows to draw worked examples from. */
export interface ExamplePool {
  readonly rows: readonly unknown[];
  /** Whether the task is measured on these very rows. */
  readonly holdsQuestions: boolean;
}

/**
 * The text before each question of a task: the description and worked examples, drawn as the harness draws them
 * (lm_eval/api/samplers.py and task.py, 0.4.13). One random generator serves all questions in order.
 */
export class FewShotPrompts {
  private readonly random = new PythonRandom(FEW_SHOT_SEED);
  private readonly pool: readonly unknown[];
  /** Whether the question itself is left out: where it is among the rows, and as in the harness where neither split is named. */
  private readonly leavesOutQuestion: boolean;
  private readonly shots = new Map<unknown, string>();
  private readonly contents = new Map<unknown, string>();

  /** @param pool the few-shot split @throws UsageError when it has too few rows */
  constructor(
    private readonly task: Task,
    { rows, holdsQuestions }: ExamplePool,
    private readonly count: number,
  ) {
    const { accepts } = task.fewShot;
    this.pool = accepts === undefined ? rows : rows.filter(accepts);
    this.leavesOutQuestion = holdsQuestions || task.splits.fewShot === task.splits.test;
    const needed = count === 0 ? 0 : count + (this.leavesOutQuestion ? 1 : 0);
    if (this.pool.length < needed)
      throw new UsageError(
        `${task.name}: ${count} worked examples are wanted, but the split ${fewShotSplit(task)} has ${this.pool.length} usable rows; choose a smaller --num-fewshot`,
      );
  }

  /** The text before a question. Call it for the rows in order. */
  before(row: unknown): string {
    const examples = this.count === 0 ? [] : this.examplesFor(row);
    return (this.task.fewShot.description ?? "") + examples.map((example) => this.shot(example)).join("");
  }

  private shot(row: unknown): string {
    const known = this.shots.get(row);
    if (known !== undefined) return known;
    const text = this.task.read(row).shot + SEPARATOR;
    this.shots.set(row, text);
    return text;
  }

  private examplesFor(row: unknown): readonly unknown[] {
    const { pool, count, random } = this;
    const own = this.leavesOutQuestion ? this.contentOf(row) : undefined;
    const others = (rows: readonly unknown[]) =>
      own === undefined ? rows : rows.filter((other) => this.contentOf(other) !== own);
    if (this.task.fewShot.sampler === "first") return this.first(own);
    if (own === undefined) return random.sample(pool, count);
    const drawn = others(random.sample(pool, count + 1)).slice(0, count);
    return drawn.length === count ? drawn : random.sample(others(pool), count);
  }

  /** The first rows but one. @param own its content */
  private first(own: string | undefined): readonly unknown[] {
    const found: unknown[] = [];
    for (const row of this.pool) {
      if (found.length === this.count) break;
      if (own === undefined || this.contentOf(row) !== own) found.push(row);
    }
    return found;
  }

  private contentOf(row: unknown): string {
    const known = this.contents.get(row);
    if (known !== undefined) return known;
    const content = JSON.stringify(row);
    this.contents.set(row, content);
    return content;
  }
}

/** How many documents a limit leaves: it is a number, or a share when below 1. */
export const limited = (documents: number, limit: number | undefined): number =>
  limit === undefined ? documents : Math.min(documents, limit < 1 ? Math.ceil(documents * limit) : Math.floor(limit));
