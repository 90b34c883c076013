/** Losses of models in nats per token, by role. */
type Losses = Readonly<Record<string, { readonly loss: number }>>;

/**
 * The share of the loss that pruning cost which distillation won back: (pruned - student) / (pruned - teacher), with the teacher that was
 * distilled from. Undefined where pruning cost nothing.
 */
export function recoveredShare({ correctedTeacher, teacher, pruned, student }: Losses): number | undefined {
  const source = correctedTeacher ?? teacher;
  if (source === undefined || pruned === undefined || student === undefined) return undefined;
  if (pruned.loss <= source.loss) return undefined;
  return (pruned.loss - student.loss) / (pruned.loss - source.loss);
}

/** What distillation did, for people; undefined where nothing was pruned. @param hasRounds whether it was cut in several */
export function recoveryText(models: Losses, hasRounds: boolean): string | undefined {
  const { pruned, student } = models;
  if (pruned === undefined || student === undefined) return undefined;
  if (student.loss > pruned.loss)
    return "distillation left the model worse than its start, which is in pruned/: more tokens, or a lower learning rate, may help";
  const share = recoveredShare(models);
  if (share === undefined)
    return `distillation lowered the loss by ${(pruned.loss - student.loss).toFixed(4)} nats/token; the cut had cost none`;
  const cost = hasRounds ? "the last round's cut left it above the teacher" : "pruning cost";
  return `distillation won back ${(100 * share).toFixed(0)} % of the loss that ${cost}`;
}
