import path from "node:path";
import { storedType } from "../checkpoint/stored-type.js";
import { Sequences, Tokenizer, type TokenStream } from "../data/index.js";
import { isDevice, quantizableDivisors } from "../devices/index.js";
import {
  crossEntropyObjective,
  type DistillationOptions,
  defaultIntermediatePairs,
  forTokens,
  type RunDirectory,
  type TrainOptions,
} from "../distill/index.js";
import type { Backend } from "../ggml/index.js";
import { loadWeights, type Model, openCheckpoint, writeModel } from "../models/index.js";
import { keptIndices, loadScores, type PrunedModel, type PrunePlan, prune } from "../prune/index.js";
import type { FileKind } from "../quantize/index.js";
import { UsageError } from "../system/errors.js";
import { fitFor } from "./device-plan.js";
import { distilBriefly, distillStage, type TeacherOptions } from "./distill.js";
import { type OpenModel, onDevice, openData, openModel, writeDirectory } from "./environment.js";
import { evaluate } from "./evaluate.js";
import type { EvaluateJob, EvaluateOutcome } from "./evaluation.js";
import { generate } from "./generate.js";
import { type BytesByKind, bytesByKind, comparedKinds } from "./like-with-like.js";
import { type Measurement, measure } from "./measure.js";
import {
  checkKept,
  claim,
  dataInputs,
  inRun,
  modelIdentity,
  modelInput,
  outside,
  ownInside,
  scoresIdentity,
} from "./output.js";
import { type PlanSummary, summarisePlan } from "./plan-summary.js";
import { type QuantizedFile, quantize } from "./quantize.js";
import { writeReport } from "./report.js";
import { noteTraining } from "./sanity.js";
import { RANKING_FILE, scoresFor, search } from "./search.js";
import { Stages } from "./stages.js";
import { candidatesFor, type TargetOptions } from "./target.js";
import { runTraining, type TrainingJob, type TrainSettings, trainOptionsFor } from "./training.js";

export interface CompressJob extends Omit<TrainingJob, "settings">, TargetOptions {
  readonly model: string;
  /** What a run that goes on elsewhere knows the model by, where its path is another; the path by default. */
  readonly modelName?: string | undefined;
  /** What the result is called in its report and its GGUF files; by default as `out` is. */
  readonly name?: string | undefined;
  /** Training settings; 2 million tokens where none are given. */
  readonly settings?: Partial<TrainSettings> | undefined;
  readonly distillation?: Partial<DistillationOptions> | undefined;
  readonly teacherOptions?: TeacherOptions | undefined;
  /** Adapt the teacher to the data first (arXiv 2408.11796, section 3), on so many tokens; true for a third of the tokens. */
  readonly teacherCorrection?: boolean | number | undefined;
  /** Match intermediate states too; helps where much depth is cut. */
  readonly intermediate?: boolean | undefined;
  /** Kinds of GGUF files to make of the student. */
  readonly gguf?: readonly FileKind[] | undefined;
  /** Benchmarks to measure teacher, pruned model and student on. */
  readonly evaluate?: Pick<EvaluateJob, "tasks" | "limit" | "data"> | undefined;
}

/** What `compress` reports. */
export interface CompressOutcome {
  readonly teacher: Measurement;
  readonly pruned: Measurement;
  readonly student: Measurement;
  readonly plan: PlanSummary;
  /** Layers of the original that stayed, counted from 0. */
  readonly keptLayers: readonly number[];
  /** Tokens the student was distilled on. */
  readonly tokens: number;
  readonly seconds: number;
  readonly tokensPerSecond: number;
  readonly out: string;
  /** How large each would be in files of the same kinds, where GGUF files are wanted or the teacher is quantized. */
  readonly bytesByKind: Readonly<Record<string, BytesByKind>>;
  /** GGUF files of the student, and what the first of them wrote. */
  readonly gguf?: GgufOutcome | undefined;
  /** Scores of teacher, pruned model and student. */
  readonly evaluation?: EvaluateOutcome | undefined;
}

/** A file as it is delivered, measured like the models that it came from. */
export interface MeasuredFile extends QuantizedFile {
  readonly measured: Measurement;
}

export interface GgufOutcome {
  readonly files: readonly MeasuredFile[];
  readonly prompt: string;
  /** A sentence that it put after the prompt. */
  readonly sentence: string;
}

const DEFAULT_TOKENS = 2e6;
/** The sentence at the end: how much of the validation text comes before it, and how long it may get. */
const [PROMPT_TOKENS, SENTENCE_TOKENS] = [6, 64];
/** Teacher correction takes a third of the tokens (127 B beside 380 B) at a fifth of the student's learning rate. */
const CORRECTION_SHARE = 1 / 3;
const CORRECTION_RATE_SHARE = 0.2;

/**
 * Makes a smaller model of a model: measure, correct the teacher if asked, calibrate, search, prune, distil, measure. The `out`
 * directory ends as a model directory with a report; killed at any moment, the same call goes on where it was.
 */
export async function compress(given: CompressJob): Promise<CompressOutcome> {
  const teacher = await openModel(given.model, given);
  const job = forQuantization(forDevice(given, teacher.model), teacher.model);
  candidatesFor(teacher.model, job); // a target that cannot be met is said before anything long begins
  if (job.scoresFile !== undefined) checkKept(job.scoresFile, "--scores");
  const inputs = [
    ...modelInput("the model", teacher.checkpoint),
    ...(await dataInputs(job)),
    ...outside(job.out, "the scores", job.scoresFile),
    ...outside(job.out, "the benchmark data", job.evaluate?.data),
  ];
  return inRun(job, inputs, async (run) => {
    const settings = trainOptionsFor(teacher.model, {
      ...job.settings,
      tokens: job.settings?.tokens ?? DEFAULT_TOKENS,
    });
    const { train: tokens, validation } = await openData(
      { directory: teacher.checkpoint.directory, model: teacher.model },
      job,
      job,
    );
    noteTraining(settings, tokens, job);
    const model = job.modelName ?? (await modelIdentity(teacher.checkpoint, job.cacheDir));
    claim(run, job, configurationOf(job, settings, { model, data: tokens.id, validation: validation.id }));
    return onDevice(job, (backend) => new Compression(backend, job, teacher, tokens, validation, settings, run).run());
  });
}

/** For a device, also the file that it takes. */
const forDevice = (job: CompressJob, model: Model): CompressJob =>
  isDevice(job.target) ? { ...job, gguf: job.gguf ?? [fitFor(model, job.target, job.space).kind] } : job;

/**
 * Where GGUF files are wanted, widths stay multiples of quantized blocks: rows that do not fill them could not be quantized, or not
 * as far as was asked for.
 */
function forQuantization(job: CompressJob, model: Model): CompressJob {
  const kinds = job.gguf ?? [];
  if (kinds.length === 0) return job;
  const keeping = (divisors: ReturnType<typeof quantizableDivisors>): CompressJob => ({
    ...job,
    space: { ...job.space, divisors: { ...divisors, ...job.space?.divisors } },
  });
  const filling = keeping(quantizableDivisors(model, kinds));
  return hasCandidates(model, filling) ? filling : keeping(quantizableDivisors(model));
}

function hasCandidates(model: Model, job: CompressJob): boolean {
  try {
    return candidatesFor(model, job).length > 0;
  } catch (error) {
    if (error instanceof UsageError) return false; // said where it matters
    throw error;
  }
}

/** What identifies a run: everything that its numbers depend on. */
function configurationOf(job: CompressJob, settings: TrainOptions, inputs: Readonly<Record<string, string>>) {
  const { target, bitsPerWeight, space, depthMethod, maxCandidates, calibrationSamples, distillation } = job;
  const { teacherOptions, teacherCorrection, searchTokens, intermediate } = job;
  return {
    ...{
      command: "compress",
      inputs,
      settings,
      target,
      bitsPerWeight,
      space,
      depthMethod,
    },
    ...{
      maxCandidates,
      calibrationSamples,
      distillation,
      teacherOptions,
      teacherCorrection,
      searchTokens,
      intermediate,
    },
  };
}

class Compression {
  private readonly stages: Stages;

  constructor(
    private readonly backend: Backend,
    private readonly job: CompressJob,
    private readonly original: OpenModel,
    private readonly tokens: TokenStream,
    private readonly validation: TokenStream,
    private readonly settings: TrainOptions,
    private readonly directory: RunDirectory,
  ) {
    this.stages = new Stages(directory.own("stages.json"));
  }

  async run(): Promise<CompressOutcome> {
    const { stages, job } = this;
    const { path: before, directory } = this.original.checkpoint;
    const teacher = await stages.once("measure teacher", () => this.measure(before, "measure teacher"));
    const teacherPath = await this.correctTeacher(before);
    const plan = await stages.once("search", () => this.search(teacherPath));
    const prunedDirectory = this.directory.file("pruned");
    await stages.once("prune", async () => {
      const place = (name: string) => this.directory.own("pruned", name);
      writeDirectory(this.cut(teacherPath, plan), directory, { ...job, out: prunedDirectory, place }, "prune");
    });
    const pruned = await stages.once("measure pruned", () => this.measure(prunedDirectory, "measure pruned"));
    const training = await stages.once("distill", () => this.distil(teacherPath, prunedDirectory, plan));
    const student = await stages.once("measure student", () => this.measure(job.out, "measure student"));
    this.directory.dropCheckpoints();
    const gguf = await this.measuredGguf(job.gguf ?? []);
    const evaluation = await this.evaluate([before, prunedDirectory, job.out]);
    const smaller = openCheckpoint(job.out).model;
    const roles = { teacher: this.original.model, pruned: smaller, student: smaller };
    const outcome: CompressOutcome = {
      ...{ teacher, pruned, student },
      plan: summarisePlan(this.original.model, smaller),
      bytesByKind: bytesByKind(roles, comparedKinds(job.gguf ?? [], this.original.checkpoint)),
      keptLayers: plan.keptLayers,
      tokens: training.tokens,
      seconds: stages.all.reduce((sum, stage) => sum + stage.seconds, 0),
      tokensPerSecond: training.tokensPerSecond,
      out: job.out,
      ...(gguf && { gguf }),
      ...(evaluation && { evaluation }),
    };
    const { out, ...told } = outcome;
    const { name = out } = job;
    const files = gguf?.files.map((file) => [`student, ${file.name}`, file.measured] as const) ?? [];
    const models = { teacher, pruned, student, ...Object.fromEntries(files) };
    writeReport(this.directory, { ...told, name, models, stages: stages.all });
    this.directory.finish();
    return outcome;
  }

  private measure(directory: string, stage: string): Promise<Measurement> {
    return measure(this.backend, directory, this.validation, stage, {
      ...this.job,
      sequenceLength: this.settings.sequenceLength,
    });
  }

  /** Measures teacher, pruned model and student on benchmarks, if asked. */
  private async evaluate(models: readonly string[]): Promise<EvaluateOutcome | undefined> {
    const { job } = this;
    if (job.evaluate === undefined) return undefined;
    const roles = ["teacher", "pruned", "student"];
    const { out: _, name: _name, modelName, ...options } = job;
    const { tasks, limit, data } = job.evaluate;
    // of a run that may go on elsewhere, answers go along
    const answers = modelName && { directory: this.directory.file("answers"), identities: roles };
    return this.stages.once(`evaluate ${JSON.stringify([tasks, limit, data])}`, () =>
      evaluate({ ...options, models, names: roles, ...(answers && { answers }), tasks, limit, data }),
    );
  }

  /** Quantizes the student and measures each file: that is what is delivered. */
  private async measuredGguf(kinds: readonly FileKind[]): Promise<GgufOutcome | undefined> {
    if (kinds.length === 0) return undefined;
    const { files, ...rest } = await this.stages.once(`gguf ${kinds.join()}`, () => this.writeGguf(kinds));
    const measured: MeasuredFile[] = [];
    for (const file of files) {
      const stage = `measure ${file.name}`;
      const measurement = await this.stages.once(stage, () => this.measure(file.files[0] ?? "", stage));
      measured.push({ ...file, measured: { ...measurement, bytes: file.fileBytes } });
    }
    return { ...rest, files: measured };
  }

  /** Quantizes the student, and has the first file write a sentence: the proof that it runs. */
  private async writeGguf(
    types: readonly FileKind[],
  ): Promise<Omit<GgufOutcome, "files"> & { readonly files: readonly QuantizedFile[] }> {
    const { job, settings } = this;
    const { files } = await quantize({
      ...{ ...job, model: job.out, types, sequenceLength: settings.sequenceLength },
      out: path.join(job.out, "gguf"),
      run: this.directory,
    });
    const start = new Int32Array(Math.min(PROMPT_TOKENS, this.validation.length));
    this.validation.copy(0, start.length, start, 0);
    const prompt = await (await Tokenizer.load(job.out)).decode([...start]);
    const { text } = await generate({
      ...{ ...job, model: files[0]?.files[0] ?? "", prompt },
      sampling: { temperature: 0, maxTokens: SENTENCE_TOKENS },
    });
    return { files, prompt, sentence: /^[\s\S]*?[.!?]["”']?(?=\s|$)/.exec(text)?.[0] ?? text };
  }

  private get sequences(): Sequences {
    return new Sequences(this.tokens, this.settings.sequenceLength);
  }

  /** Trains the teacher lightly on the data, so that what it teaches is about this data. @returns where it is */
  private async correctTeacher(before: string): Promise<string> {
    const { job, settings, backend } = this;
    if (job.teacherCorrection === undefined || job.teacherCorrection === false) return before;
    const tokens =
      typeof job.teacherCorrection === "number" ? job.teacherCorrection : Math.ceil(settings.tokens * CORRECTION_SHARE);
    const corrected = this.directory.file("corrected-teacher");
    await this.stages.once("correct teacher", async () => {
      const { checkpoint, model } = this.original;
      const student = loadWeights(backend, model, checkpoint.source, { dtype: "f32", trainable: true });
      try {
        const learningRate = settings.learningRate * CORRECTION_RATE_SHARE;
        const result = await runTraining({
          ...{
            backend,
            stage: "correct teacher",
            isPart: true,
            run: this.directory.part("teacher-correction"),
            model,
            student,
          },
          ...{ objective: crossEntropyObjective, sequences: this.sequences, validation: this.validation, options: job },
          settings: trainOptionsFor(model, {
            ...forTokens(settings, tokens),
            learningRate,
            minimumLearningRate: learningRate / 10,
          }),
        });
        writeModel(
          corrected,
          { ...checkpoint, source: student.source() },
          {
            dtype: storedType(checkpoint.source),
            carryFrom: checkpoint.directory,
            place: (name) => this.directory.own("corrected-teacher", name),
            onNote: job.onNote,
          },
        );
        return result;
      } finally {
        student.free();
      }
    });
    await this.stages.once("measure corrected teacher", () => this.measure(corrected, "measure corrected teacher"));
    return corrected;
  }

  private async search(teacherPath: string): Promise<PrunePlan> {
    const { backend, job, settings, validation } = this;
    const original = openCheckpoint(teacherPath);
    const { model } = original;
    const weights = loadWeights(backend, model, original.source, { dtype: settings.computeType, trainable: false });
    try {
      const options = { ...job, scoresFile: this.scoresFile };
      const scores = await this.stages
        .once("calibrate", async () => {
          const identity = job.modelName === undefined ? await this.identity() : undefined;
          await scoresFor(backend, weights, this.tokens, options, settings.computeType, identity);
          return scoresIdentity(this.scoresFile);
        })
        .then((identity) => this.sameScores(identity));
      const ranked = await search({
        ...{ backend, original, weights, scores, validation, options, computeType: settings.computeType },
        rankingFile: this.directory.own(RANKING_FILE),
        ...(job.searchTokens !== undefined && {
          distill: (pruned: PrunedModel) =>
            distilBriefly(
              backend,
              weights,
              pruned,
              this.sequences,
              validation,
              forTokens(settings, job.searchTokens ?? 0),
            ),
        }),
      });
      const best = ranked[0];
      if (best === undefined) throw new UsageError(`the target ${job.target} has no candidates`);
      return best.plan;
    } finally {
      weights.free();
    }
  }

  private identity(): Promise<string> {
    return modelIdentity(this.original.checkpoint, this.job.cacheDir);
  }

  private get scoresFile(): string {
    const { scoresFile } = this.job;
    return scoresFile === undefined
      ? this.directory.own("importance.safetensors")
      : ownInside(this.directory, scoresFile);
  }

  /** The scores that the run has used from its beginning. */
  private async sameScores(identity: string) {
    if ((await scoresIdentity(this.scoresFile)) !== identity)
      throw new UsageError(`${this.scoresFile} is not what it was when the run began: --restart begins anew with it`);
    return loadScores(this.backend, this.scoresFile, this.original.model);
  }

  private cut(teacherPath: string, plan: PrunePlan): PrunedModel {
    const teacher = openCheckpoint(teacherPath);
    const scores = loadScores(this.backend, this.scoresFile, teacher.model);
    return prune(teacher, plan, keptIndices(teacher.model, plan, scores));
  }

  private distil(teacherPath: string, prunedDirectory: string, plan: PrunePlan) {
    const { backend, job, settings, validation } = this;
    const pruned = openCheckpoint(prunedDirectory);
    const intermediate = job.intermediate === true ? { intermediate: defaultIntermediatePairs(plan.keptLayers) } : {};
    return distillStage({
      ...{ backend, stage: "distill", run: this.directory, settings, validation, options: job, teacherPath },
      sequences: this.sequences,
      student: pruned,
      distillation: { ...job.distillation, ...intermediate },
      teacher: job.teacherOptions ?? {},
      cacheDir: job.cacheDir,
      write: (weights) =>
        writeModel(
          job.out,
          { ...pruned, source: weights.source() },
          {
            dtype: storedType(pruned.source),
            carryFrom: prunedDirectory,
            place: (name) => this.directory.own(name),
            onNote: job.onNote,
          },
        ),
    });
  }
}
