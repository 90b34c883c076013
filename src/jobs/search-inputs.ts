import type { TokenStream } from "../data/index.js";
import type { Backend } from "../ggml/index.js";
import type { Checkpoint, PassWeights } from "../models/index.js";
import type { KnownValues } from "../system/known-values.js";
import type { ComputeType } from "../tensor/index.js";
import type { JobOptions } from "./job.js";
import type { TargetOptions } from "./target.js";

/** A model that is loaded to be scored and cut. */
export interface SearchInputs {
  readonly backend: Backend;
  readonly original: Checkpoint;
  readonly weights: PassWeights;
  /** Training data, to calibrate on. */
  readonly tokens: TokenStream;
  readonly validation: TokenStream;
  readonly computeType: ComputeType;
  readonly options: TargetOptions & JobOptions;
  /** The path of a file of the run, by its name, for what a killed search goes on from; without it nothing is kept. */
  readonly place?: ((name: string) => string) | undefined;
  /** What the run has measured before it was killed, if it was. */
  readonly known?: KnownValues | undefined;
}
