/**
 * What distillation did, for people.
 * @param share of the loss that the cut cost which was won back; negative where the student is worse than its start
 * @param cost what had cost that loss: `pruning cost`
 */
export const recoveryText = (share: number, cost: string): string =>
  share < 0
    ? "distillation left the model worse than its start, which is in pruned/: more tokens, or a lower learning rate, may help"
    : `distillation won back ${(100 * share).toFixed(0)} % of the loss that ${cost}`;
