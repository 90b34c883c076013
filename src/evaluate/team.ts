import { InterruptedError } from "../system/errors.js";
import type { TensorStore } from "../tensor/index.js";

/** Processes that go through the same steps of a model at the same time, each with some of the data. */
export interface Team {
  /** This process, from 0 on: the first one leads. */
  readonly rank: number;
  readonly size: number;
  /** Batches of all processes. */
  readonly batches: number;
  /** A process's share [from, to) of so many things. */
  readonly share: (count: number, rank: number) => readonly [from: number, to: number];
  /** Adds up the tensors of a store, which become the sums of all processes at one of them, or at all. */
  readonly sum: (store: TensorStore, root?: number) => Promise<void>;
  /** Copies numbers of one process to all others. */
  readonly broadcast: (numbers: Float32Array, from: number) => Promise<void>;
  /** Whether the job is to stop; the leader knows. */
  readonly isStopped?: (() => boolean) | undefined;
}

/** Whether this process leads, or is alone. */
export const leads = (team: Team | undefined): boolean => team === undefined || team.rank === 0;

/** What the leader says, at all. @param own is asked of the leader alone */
export async function agreed(team: Team | undefined, own: () => boolean): Promise<boolean> {
  const answer = Float32Array.of(leads(team) && own() ? 1 : 0);
  await team?.broadcast(answer, 0);
  return answer[0] === 1;
}

/** Between steps, where what was found is kept: all processes of a team stop here, or none. @throws InterruptedError */
export async function stopTogether(team: Team | undefined): Promise<void> {
  if (team !== undefined && (await agreed(team, () => team.isStopped?.() === true)))
    throw new InterruptedError("stopped; the same command goes on from there");
}
