import { rmSync } from "node:fs";
import path from "node:path";
import { type Passage, rowsOfBatch } from "../../evaluate/residual-stream.js";
import type { Team } from "../../evaluate/team.js";
import { readElements, writeElements, zeroMatrix } from "../../linear-algebra/index.js";
import { type Checkpoint, type DimensionName, sizeOf } from "../../models/index.js";
import {
  type PrunedModel,
  type PrunePlan,
  type SurgeonOptions,
  type SurgeonScores,
  surgeonScores,
} from "../../prune/index.js";
import type { Message, Ranks } from "../../ranks/index.js";
import { type PreparedCut, type RefitOptions, refitCut } from "../../refit/index.js";
import { InterruptedError } from "../../system/errors.js";
import { scratchDirectory } from "../../system/scratch.js";
import { elementCount, type TensorStore } from "../../tensor/index.js";
import { type JobOptions, onDevice } from "../job.js";
import { statesBytes } from "../model-memory.js";
import { type SharedModel, sharedModel } from "./model.js";
import { openShared } from "./same-model.js";

/** A follower's part of calibration data, whose ids follow. */
interface PassageTask extends SharedModel {
  readonly layout: Passage["layout"];
  readonly batches: number;
  readonly allBatches: number;
}

interface StatisticsTask extends PassageTask {
  /** Steps that are scored already. */
  readonly steps: number;
}

interface RefitTask extends PassageTask {
  readonly plan: PrunePlan;
  readonly kept: readonly (readonly [DimensionName, readonly number[]])[];
  /** Its matrices follow. */
  readonly basis?: {
    readonly columns: number;
    readonly isRotated: boolean;
    readonly scale: number;
    readonly negative: number;
  };
}

/** What is shared, and with whom. */
export interface SharedPassage {
  readonly ranks: Ranks;
  /** The leader's, with all data. */
  readonly passage: Passage;
  readonly original: Checkpoint;
  readonly options: JobOptions;
}

/** {@link surgeonScores} by all ranks. */
export function sharedStatistics(shared: SharedPassage, options: SurgeonOptions): Promise<SurgeonScores> {
  const { ranks, original } = shared;
  return ranks.together(() => {
    const part = handOut(shared, { kind: "statistics", steps: options.known?.steps ?? 0 });
    return surgeonScores(part, original, options);
  });
}

/** A follower's part of {@link sharedStatistics}. */
export async function joinStatistics(ranks: Ranks, message: Message): Promise<void> {
  const task = message as Message & StatisticsTask;
  await withPart(ranks, task, async (passage, original) => {
    const streamMoments = new Float32Array(sizeOf("hidden", original.model.sizes) ** 2);
    await surgeonScores(passage, original, { known: { steps: task.steps, scores: new Map(), streamMoments } });
  });
}

/** {@link refitCut} by all ranks. */
export function sharedRefit(shared: SharedPassage, cut: PreparedCut, options: RefitOptions): Promise<PrunedModel> {
  const { plan, kept, basis } = cut;
  const { ranks } = shared;
  return ranks.together(() => {
    const task = {
      kind: "refit",
      plan,
      kept: [...kept].map(([name, indices]) => [name, [...indices]]),
      basis: basis && {
        columns: basis.write.columns,
        isRotated: basis.read !== undefined,
        scale: basis.scale,
        negative: basis.negative,
      },
    };
    const matrices = [basis?.write, basis?.read].flatMap((matrix) => matrix?.data ?? []);
    return refitCut(cut, handOut(shared, task, matrices), options);
  });
}

/** A follower's part of {@link sharedRefit}, which embeds its tokens with embeddings of its own. */
export async function joinRefit(ranks: Ranks, message: Message): Promise<void> {
  const task = message as Message & RefitTask;
  const { plan, basis } = task;
  const kept = new Map(task.kept.map(([name, indices]) => [name, Uint32Array.from(indices)]));
  await withPart(ranks, task, async (passage, original) => {
    const receive = () => {
      const matrix = zeroMatrix(sizeOf("hidden", original.model.sizes), basis?.columns ?? 0);
      ranks.receiveData(matrix.data, 0);
      return matrix;
    };
    const write = basis && receive();
    const read = basis?.isRotated === true ? receive() : undefined;
    const cut: PreparedCut = {
      original,
      plan,
      kept,
      basis: basis && write && { write, read, scale: basis.scale, negative: basis.negative },
      identity: "a follower's",
    };
    const scratch = scratchDirectory("refit");
    try {
      await refitCut(cut, passage, { place: (name) => path.join(scratch, name) });
    } finally {
      rmSync(scratch, { recursive: true, force: true });
    }
  });
}

/** Whether there is data for all ranks. */
export const canShare = (ranks: Ranks | undefined, { batches }: Passage): ranks is Ranks =>
  ranks !== undefined && batches.length >= ranks.size;

/** Gives each follower its task, its part of the data, and more data that all get. @returns the leader's part */
function handOut(
  { ranks, passage, original, options }: SharedPassage,
  message: Message,
  more: readonly Float32Array[] = [],
): Passage {
  const { batches, layout, computeType } = passage;
  const partOf = (rank: number) => batches.slice(...ranks.share(batches.length, rank));
  for (let to = 1; to < ranks.size; to++) {
    const part = partOf(to);
    const task: PassageTask = {
      ...sharedModel(original.path, computeType, options),
      layout,
      batches: part.length,
      allBatches: batches.length,
    };
    ranks.post({ ...message, ...task }, to);
    for (const ids of part) ranks.sendData(ids, to);
    for (const data of more) ranks.sendData(data, to);
  }
  const team = { ...teamOf(ranks, batches.length), isStopped: () => options.signal?.aborted === true };
  return { ...passage, batches: partOf(0), team };
}

/** Receives a follower's part of the data, and does its work with it, until it is done or all stop. */
async function withPart(
  ranks: Ranks,
  task: PassageTask,
  work: (passage: Passage, original: Checkpoint) => Promise<void>,
): Promise<void> {
  const { computeType, layout, device, allBatches } = task;
  const batches = Array.from({ length: task.batches }, () => ranks.receiveIds(rowsOfBatch({ layout })));
  try {
    await onDevice({ ...device, ranks }, (backend) => {
      const memoryBytes = statesBytes({ memoryBytes: task.memoryBytes, ranks });
      const passage = { backend, computeType, layout, batches, memoryBytes, team: teamOf(ranks, allBatches) };
      return work(passage, openShared(task));
    });
  } catch (error) {
    if (!(error instanceof InterruptedError)) throw error;
  }
}

/** Numbers that are added up at once: 256 KB. */
const SUMMED_AT_ONCE = 1 << 16;

function teamOf(ranks: Ranks, batches: number): Team {
  const { rank, size } = ranks;
  return {
    rank,
    size,
    batches,
    share: (count, of) => ranks.share(count, of),
    broadcast: (numbers, from) => ranks.broadcast(numbers, from),
    sum: async (store: TensorStore, root?: number) => {
      for (const tensor of store)
        for (let from = 0, part = 0; from < elementCount(tensor.shape); from += SUMMED_AT_ONCE, part++) {
          const own = new Float32Array(Math.min(SUMMED_AT_ONCE, elementCount(tensor.shape) - from));
          readElements(store.backend, tensor, from, own);
          const adder = root ?? part % size; // where all want the sums, all add some
          const all = adder === rank || root === undefined ? new Float32Array(own.length) : undefined;
          await ranks.reduce(own, adder, adder === rank ? all : undefined);
          if (all === undefined) continue;
          if (root === undefined) await ranks.broadcast(all, adder);
          writeElements(store.backend, tensor, from, all);
        }
    },
  };
}
