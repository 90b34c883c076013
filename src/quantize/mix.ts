import highs from "highs";
import type { QuantizedDType } from "../ggml/dtype.js";
import { CoppiceError, UsageError } from "../system/errors.js";
import type { Sensitivity, TypeCost } from "./sensitivity.js";

/** A choice of a type for each tensor. */
export interface Mix {
  readonly types: ReadonlyMap<string, QuantizedDType>;
  readonly bytes: number;
  /** The sum of what each type costs alone, in nats per token: to first order, what all of them cost together. */
  readonly expectedLoss: number;
}

/** The package's types describe its CommonJS form; Node loads the ES module, whose default export is the loader itself. */
const loadSolver = highs as unknown as typeof highs.default;

/** The relative distance from the best sum at which the solver may stop. */
const RELATIVE_GAP = 1e-4;

/**
 * The types with the smallest sum of losses whose bytes stay within a limit: a multiple-choice knapsack, that is an integer
 * program with one choice for each tensor, solved by HiGHS.
 * @throws UsageError when even the smallest types are too large
 */
export async function bestMix(sensitivity: Sensitivity, limitBytes: number): Promise<Mix> {
  const tensors = [...sensitivity];
  const smallest = tensors.reduce((sum, [, costs]) => sum + Math.min(...costs.map(({ bytes }) => bytes)), 0);
  if (smallest > limitBytes)
    throw new UsageError(
      `the weights take ${smallest} bytes even in the smallest types, but only ${Math.max(0, Math.floor(limitBytes))} are left for them: choose a larger --size`,
    );
  // losses are scaled to about one, so that the solver's tolerances do not hide them
  const unit = Math.max(...tensors.flatMap(([, costs]) => costs.map(({ loss }) => loss)), Number.MIN_VALUE);
  const name = (tensor: number, type: number) => `x${tensor}_${type}`;
  const terms = (coefficient: (cost: TypeCost) => number) =>
    tensors
      .map(([, costs], i) => costs.map((cost, j) => `${coefficient(cost)} ${name(i, j)}`).join(" + "))
      .join("\n + ");
  const program = [
    "Minimize",
    ` loss: ${terms(({ loss }) => loss / unit)}`,
    "Subject To",
    ` size: ${terms(({ bytes }) => bytes)} <= ${Math.floor(limitBytes)}`,
    ...tensors.map(([, costs], i) => ` one${i}: ${costs.map((_, j) => name(i, j)).join(" + ")} = 1`),
    "Binary",
    ...tensors.map(([, costs], i) => ` ${costs.map((_, j) => name(i, j)).join(" ")}`),
    "End",
  ].join("\n");
  const solver = await loadSolver();
  const solution = solver.solve(program, { mip_rel_gap: RELATIVE_GAP, time_limit: 30, output_flag: false });
  if (solution.Status !== "Optimal" && solution.Status !== "Time limit reached")
    throw new CoppiceError(`no mix of types was found within the size (${solution.Status})`);
  const chosen = tensors.map(([tensor, costs], i) => {
    const j = costs.findIndex((_, type) => {
      const column = solution.Columns[name(i, type)];
      return column !== undefined && "Primal" in column && column.Primal > 0.5;
    });
    const choice = costs[j];
    if (choice === undefined) throw new CoppiceError(`no type was chosen for ${tensor}`);
    return { tensor, ...choice };
  });
  return {
    types: new Map(chosen.map(({ tensor, dtype }) => [tensor, dtype])),
    bytes: chosen.reduce((sum, { bytes }) => sum + bytes, 0),
    expectedLoss: chosen.reduce((sum, { loss }) => sum + loss, 0),
  };
}
