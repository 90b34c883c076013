import type { TensorSource } from "../checkpoint/index.js";
import type { Passage, ResidualStream } from "../evaluate/residual-stream.js";
import type { Model, ModelTensors } from "../models/index.js";
import type { Basis } from "./basis.js";
import type { Start } from "./start.js";
import type { StepFiles } from "./step-files.js";

export interface RefitInputs {
  readonly passage: Passage;
  /** The original. */
  readonly dense: ModelTensors;
  /** The cut model. */
  readonly student: Model;
  /** For each of its layers, the original's that it comes from. */
  readonly keptLayers: readonly number[];
  /** Its values before the refit. */
  readonly start: Start;
  /** Its tensors before the width is cut: see `cutWithinLayers`. */
  readonly within: TensorSource;
  /** Undefined where the width is not cut. */
  readonly basis: Basis | undefined;
  readonly files: StepFiles;
  readonly onProgress?: ((done: number, total: number) => void) | undefined;
}

/** Both models' residual streams, between the same two steps. */
export interface Streams {
  readonly dense: ResidualStream;
  readonly student: ResidualStream;
}
