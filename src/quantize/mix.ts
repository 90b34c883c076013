import highs from "highs";
import type { QuantizedDType } from "../ggml/dtype.js";
import { CoppiceError, UsageError } from "../system/errors.js";
import type { Sensitivity } from "./sensitivity.js";

/** A type for each tensor, with what they come to. */
export interface Mix {
  readonly types: ReadonlyMap<string, QuantizedDType>;
  readonly bytes: number;
  /** The sum of the divergences of each choice alone, in nats per token: what to expect of all together, to first order. */
  readonly expectedLoss: number;
}

/** The package's types are of its CommonJS form; Node loads the other, whose default export is the loader itself. */
const loadSolver = highs as unknown as typeof highs.default;

/** How far from the best sum the solver may stop. */
const RELATIVE_GAP = 1e-4;

/**
 * The types with the smallest sum of losses whose bytes stay within a limit: an integer programme, one choice for each tensor
 * (a multiple-choice knapsack), solved by HiGHS.
 * @throws UsageError when even the smallest types are too large
 */
export async function bestMix(sensitivity: Sensitivity, limitBytes: number): Promise<Mix> {
  const tensors = [...sensitivity];
  const smallest = tensors.reduce((sum, [, costs]) => sum + Math.min(...costs.map(({ bytes }) => bytes)), 0);
  if (smallest > limitBytes)
    throw new UsageError(
      `the weights take ${smallest} bytes even in the smallest types tried, ${Math.max(0, Math.floor(limitBytes))} were left for them: choose a larger --size`,
    );
  // losses are scaled to about one, so that the solver's tolerances do not hide them
  const unit = Math.max(...tensors.flatMap(([, costs]) => costs.map(({ loss }) => loss)), Number.MIN_VALUE);
  const name = (tensor: number, type: number) => `x${tensor}_${type}`;
  const terms = (of: (tensor: number, type: number) => number) =>
    tensors.map(([, costs], i) => costs.map((_, j) => `${of(i, j)} ${name(i, j)}`).join(" + ")).join("\n + ");
  const cost = (i: number, j: number) => tensors[i]?.[1][j];
  const programme = [
    "Minimize",
    ` loss: ${terms((i, j) => (cost(i, j)?.loss ?? 0) / unit)}`,
    "Subject To",
    ` size: ${terms((i, j) => cost(i, j)?.bytes ?? 0)} <= ${Math.floor(limitBytes)}`,
    ...tensors.map(([, costs], i) => ` one${i}: ${costs.map((_, j) => name(i, j)).join(" + ")} = 1`),
    "Binary",
    ...tensors.map(([, costs], i) => ` ${costs.map((_, j) => name(i, j)).join(" ")}`),
    "End",
  ].join("\n");
  const solver = await loadSolver();
  const solution = solver.solve(programme, { mip_rel_gap: RELATIVE_GAP, time_limit: 30, output_flag: false });
  if (solution.Status !== "Optimal" && solution.Status !== "Time limit reached")
    throw new CoppiceError(`no set of types was found within the size (${solution.Status})`);
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
