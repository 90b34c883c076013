/** Losses of a candidate on the validation data, mean nats per token, from the cheapest measurement to the one that counts most. */
export interface CandidateLosses {
  /** As pruned. */
  readonly loss: number;
  readonly refittedLoss?: number | undefined;
  /** After a short distillation. */
  readonly distilledLoss?: number | undefined;
}

/** The loss that a candidate is ranked by. */
export const rankingLoss = ({ loss, refittedLoss, distilledLoss }: CandidateLosses): number =>
  distilledLoss ?? refittedLoss ?? loss;
