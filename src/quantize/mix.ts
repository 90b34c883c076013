import type { QuantizedDType } from "../ggml/dtype.js";
import { elementAt } from "../system/arrays.js";
import { UsageError } from "../system/errors.js";
import { cheapestWithin } from "../system/knapsack.js";
import type { Sensitivity } from "./sensitivity.js";

/** A choice of a type for each tensor. */
export interface Mix {
  readonly types: ReadonlyMap<string, QuantizedDType>;
  readonly bytes: number;
  /** The sum of what each type costs alone, in nats per token: to first order, what all of them cost together. */
  readonly expectedLoss: number;
}

/** @throws UsageError when even the smallest types are too large */
export function checkSmallest(sensitivity: Sensitivity, limitBytes: number): void {
  const smallest = [...sensitivity.values()].reduce(
    (sum, costs) => sum + Math.min(...costs.map(({ bytes }) => bytes)),
    0,
  );
  if (smallest > limitBytes)
    throw new UsageError(
      `the weights take ${smallest} bytes even in the smallest types, but only ${Math.max(0, Math.floor(limitBytes))} are left for them: choose a larger --size`,
    );
}

/**
 * The types with the smallest sum of losses whose bytes stay within a limit.
 * @throws UsageError when even the smallest types are too large
 */
export async function bestMix(sensitivity: Sensitivity, limitBytes: number): Promise<Mix> {
  checkSmallest(sensitivity, limitBytes);
  const tensors = [...sensitivity];
  const choices = tensors.map(([, costs]) => costs.map(({ bytes, loss }) => ({ size: bytes, cost: loss })));
  const numbers = await cheapestWithin(choices, limitBytes);
  const chosen = tensors.map(([tensor, costs], i) => ({ tensor, ...elementAt(costs, numbers?.[i] ?? -1) }));
  return {
    types: new Map(chosen.map(({ tensor, dtype }) => [tensor, dtype])),
    bytes: chosen.reduce((sum, { bytes }) => sum + bytes, 0),
    expectedLoss: chosen.reduce((sum, { loss }) => sum + loss, 0),
  };
}
