import highs from "highs";
import { elementAt } from "./arrays.js";
import { CoppiceError } from "./errors.js";

/** One of the alternatives for an item. */
export interface Alternative {
  readonly cost: number;
  /** What it takes of what is limited. */
  readonly size: number;
}

/** The package's types describe its CommonJS form; Node loads the ES module, whose default export is the loader itself. */
const loadSolver = highs as unknown as typeof highs.default;
type Solver = Awaited<ReturnType<typeof loadSolver>>;

let loaded: Promise<Solver> | undefined;

/** Solves with the one instance of HiGHS, whose code takes longer to compile than most programs to solve. */
async function solve(...problem: Parameters<Solver["solve"]>): Promise<ReturnType<Solver["solve"]>> {
  loaded ??= loadSolver();
  try {
    return (await loaded).solve(...problem);
  } catch (error) {
    loaded = undefined; // what has aborted cannot be called again
    throw error;
  }
}

/** The relative distance from the best sum at which the solver may stop. */
const RELATIVE_GAP = 1e-4;
const SECONDS_AT_MOST = 30;

/**
 * Chooses one alternative for each item, so that the sum of costs is smallest and the sum of sizes within a limit: a multiple-choice
 * knapsack, that is an integer program with one choice for each item, solved by HiGHS to a ten-thousandth of the best sum.
 * @returns the number of the alternative for each item; undefined when even the smallest ones exceed the limit
 */
export async function cheapestWithin(
  items: readonly (readonly Alternative[])[],
  limit: number,
): Promise<number[] | undefined> {
  const smallest = items.reduce((sum, alternatives) => sum + Math.min(...alternatives.map(({ size }) => size)), 0);
  if (smallest > limit) return undefined;
  // costs are scaled to about one, so that the solver's tolerances do not hide them
  const unit = Math.max(...items.flatMap((alternatives) => alternatives.map(({ cost }) => cost)), Number.MIN_VALUE);
  const name = (item: number, alternative: number) => `x${item}_${alternative}`;
  const terms = (coefficient: (alternative: Alternative) => number) =>
    items
      .map((alternatives, i) => alternatives.map((each, j) => `${coefficient(each)} ${name(i, j)}`).join(" + "))
      .join("\n + ");
  const program = [
    "Minimize",
    ` cost: ${terms(({ cost }) => cost / unit)}`,
    "Subject To",
    ` size: ${terms(({ size }) => size)} <= ${Math.floor(limit)}`,
    ...items.map((alternatives, i) => ` one${i}: ${alternatives.map((_, j) => name(i, j)).join(" + ")} = 1`),
    "Binary",
    ...items.map((alternatives, i) => ` ${alternatives.map((_, j) => name(i, j)).join(" ")}`),
    "End",
  ].join("\n");
  const options = { mip_rel_gap: RELATIVE_GAP, time_limit: SECONDS_AT_MOST, output_flag: false };
  const solution = await solve(program, options);
  if (solution.Status !== "Optimal" && solution.Status !== "Time limit reached")
    throw new CoppiceError(`the integer program was not solved (${solution.Status})`);
  return items.map((alternatives, i) => {
    const chosen = alternatives.findIndex((_, j) => {
      const column = solution.Columns[name(i, j)];
      return column !== undefined && "Primal" in column && column.Primal > 0.5;
    });
    elementAt(alternatives, chosen); // throws where the solver found none in time
    return chosen;
  });
}
