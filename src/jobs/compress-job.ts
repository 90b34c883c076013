import type { DistillationOptions } from "../distill/index.js";
import type { FileKind } from "../quantize/index.js";
import type { BytesByKind } from "./bytes-by-kind.js";
import type { EvaluateJob, EvaluateOutcome } from "./evaluation.js";
import type { Measurement } from "./measure.js";
import type { PlanSummary } from "./plan-summary.js";
import type { QuantizedFile } from "./quantize.js";
import type { RoundSummary } from "./round-summary.js";
import type { TargetOptions } from "./target.js";
import type { TeacherOptions } from "./teacher-options.js";
import type { TrainingJob, TrainSettings } from "./training.js";

export interface CompressJob extends Omit<TrainingJob, "settings">, TargetOptions {
  readonly model: string;
  /** Identifies the model in a run that may continue on another machine; by default the content of its files does. */
  readonly modelName?: string | undefined;
  /** The result's name in its report and its GGUF files; the name of `out` by default. */
  readonly name?: string | undefined;
  /** Training settings; 2 million tokens by default. */
  readonly settings?: Partial<TrainSettings> | undefined;
  readonly distillation?: Partial<DistillationOptions> | undefined;
  readonly teacherOptions?: TeacherOptions | undefined;
  /** Adapt the teacher to the data first (arXiv 2408.11796, section 3), on this many tokens; true for a third of the tokens. */
  readonly teacherCorrection?: boolean | number | undefined;
  /**
   * Cut in this many rounds of search, cut and distillation, each removing the same share of the parameters that are left and training
   * on an equal share of the tokens; 1 by default.
   */
  readonly rounds?: number | undefined;
  /** Match intermediate states, too; helps if much depth is cut. */
  readonly intermediate?: boolean | undefined;
  /** Kinds of GGUF files to write of the student. */
  readonly gguf?: readonly FileKind[] | undefined;
  /** Benchmarks for teacher, pruned model and student. */
  readonly evaluate?: Pick<EvaluateJob, "tasks" | "limit" | "data"> | undefined;
}

export interface CompressOutcome {
  readonly teacher: Measurement;
  /** The teacher that was adapted to the data, where that was requested: it was distilled from. */
  readonly correctedTeacher?: Measurement | undefined;
  /** As cut, before it was distilled; of several rounds in the last one. */
  readonly pruned: Measurement;
  readonly student: Measurement;
  /** From the original to the student, whatever the rounds between. */
  readonly plan: PlanSummary;
  /** The original's layers that were kept, counted from 0. */
  readonly keptLayers: readonly number[];
  /** Where there were several. */
  readonly rounds?: readonly RoundSummary[] | undefined;
  /** Tokens that the student was distilled on, in all rounds. */
  readonly tokens: number;
  readonly seconds: number;
  readonly tokensPerSecond: number;
  readonly out: string;
  /** The models' sizes in files of the same kinds, by role; empty unless GGUF files are wanted or the teacher is quantized. */
  readonly bytesByKind: Readonly<Record<string, BytesByKind>>;
  /** GGUF files of the student, and a sentence that the first of them generated. */
  readonly gguf?: GgufOutcome | undefined;
  /** Scores of teacher, pruned model and student. */
  readonly evaluation?: EvaluateOutcome | undefined;
}

/** A file to deliver, measured like the models that it was made from. */
export interface MeasuredFile extends QuantizedFile {
  readonly measured: Measurement;
}

/** The GGUF files of a smaller model, and what one of them writes. */
export interface GgufOutcome {
  readonly files: readonly MeasuredFile[];
  readonly prompt: string;
  /** The generated sentence, without the prompt. */
  readonly sentence: string;
}
