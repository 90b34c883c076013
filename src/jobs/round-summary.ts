import type { Measurement } from "./measure.js";
import type { PlanSummary } from "./plan-summary.js";

/** What one of several rounds has done. */
export interface RoundSummary {
  /** Each axis's size before and after the round's cut. */
  readonly plan: PlanSummary;
  /** The original's layers that are left, counted from 0. */
  readonly keptLayers: readonly number[];
  /** The model as the round has cut it, before it was distilled. */
  readonly pruned: Measurement;
  readonly student: Measurement;
  /** Tokens that the student was distilled on in this round. */
  readonly tokens: number;
}
