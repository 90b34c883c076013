/** The work that can be timed: a distillation or training step, a forward pass without or with the output head, calibration. */
export const BENCH_WORK = ["distill", "train", "forward", "logits", "calibrate"] as const;
export type BenchWork = (typeof BENCH_WORK)[number];
