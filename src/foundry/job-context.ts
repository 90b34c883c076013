import type { JobOptions } from "../jobs/index.js";
import type { Materials } from "./materials.js";
import type { Storage, Workspace } from "./storage.js";
import type { Job } from "./store/jobs.js";
import type { Dataset, Library, ModelRow } from "./store/library.js";

/** Everything a job needs beside its own row. */
export interface JobContext {
  readonly job: Job;
  readonly model: ModelRow;
  readonly dataset: Dataset | undefined;
  readonly materials: Materials;
  readonly library: Library;
  readonly storage: Storage;
  readonly workspace: Workspace;
  /** Device, progress and cancellation. */
  readonly options: JobOptions;
  readonly log: (text: string) => void;
}
