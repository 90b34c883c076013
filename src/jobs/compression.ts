import path from "node:path";
import { Sequences, Tokenizer, type TokenStream } from "../data/index.js";
import {
  crossEntropyObjective,
  defaultIntermediatePairs,
  forTokens,
  type RunDirectory,
  type TrainOptions,
  type TrainResult,
} from "../distill/index.js";
import type { Backend } from "../ggml/index.js";
import { loadWeights, openCheckpoint } from "../models/index.js";
import { keptIndices, loadScores, type PrunedModel, type PrunePlan, prune, type Scores } from "../prune/index.js";
import type { FileKind } from "../quantize/index.js";
import { UsageError } from "../system/errors.js";
import { bytesByKind, comparedKinds } from "./bytes-by-kind.js";
import type { CompressJob, CompressOutcome, GgufOutcome, MeasuredFile } from "./compress-job.js";
import { distillBriefly, distillStage } from "./distill.js";
import { evaluate } from "./evaluate.js";
import type { EvaluateOutcome } from "./evaluation.js";
import { generate } from "./generate.js";
import { modelIdentity, scoresIdentity } from "./inputs.js";
import { type Measurement, measure } from "./measure.js";
import { checkInLlamaCpp, type OpenModel } from "./open-model.js";
import { ownIfInside } from "./output.js";
import { summarizePlan } from "./plan-summary.js";
import { type QuantizedFile, quantize } from "./quantize.js";
import { writeReport } from "./report.js";
import { RANKING_FILE, scoresFor, search } from "./search.js";
import { Stages } from "./stages.js";
import { noteSelection, refittedStart, type StartInputs, type StartStatistics, startStatistics } from "./start.js";
import { runTraining, trainOptionsFor, writeTrained } from "./training.js";
import { writeDirectory } from "./write-directory.js";

/** The sample sentence: how many tokens of the validation text are its prompt, and how long it may become. */
const [PROMPT_TOKENS, SENTENCE_TOKENS] = [6, 64];
/** Teacher correction takes a third of the student's tokens (127 B beside 380 B) at a fifth of its learning rate. */
const CORRECTION_SHARE = 1 / 3;
const CORRECTION_RATE_SHARE = 0.2;

/** For a pruned model that llama.cpp cannot compute, though it can compute the original. */
const OTHER_CUTS = "Leave the width as it is (--axes ffn or ffn,layers, with --restart), or do without --gguf";

/** The folder of a run for what a refitted start is made of. */
const REFIT = "refit";

/** What a compression works on. */
export interface CompressionInputs {
  readonly backend: Backend;
  readonly job: CompressJob;
  readonly original: OpenModel;
  /** Training data. */
  readonly tokens: TokenStream;
  readonly validation: TokenStream;
  readonly settings: TrainOptions;
  readonly directory: RunDirectory;
}

/** A compression in its run's directory, stage by stage: stages that are finished already are not run again. */
export class Compression {
  private readonly stages: Stages;

  constructor(private readonly inputs: CompressionInputs) {
    this.stages = new Stages(inputs.directory.own("stages.json"));
  }

  async run(): Promise<CompressOutcome> {
    const { stages } = this;
    const { job, original, directory } = this.inputs;
    const originalPath = original.checkpoint.path;
    const prunedPath = directory.file("pruned");
    const teacher = await this.measure(originalPath, "measure teacher");
    const teacherPath = await this.correctTeacher();
    const plan = await stages.once("search", () => this.search(teacherPath));
    await stages.once("prune", async () => {
      const place = (name: string) => directory.own("pruned", name);
      const { directory: carryFrom } = original.checkpoint;
      const start = await this.start(teacherPath, plan);
      writeDirectory(start, carryFrom, { ...job, out: prunedPath, place }, "prune");
    });
    directory.drop(REFIT);
    if (job.gguf !== undefined && job.gguf.length > 0) checkInLlamaCpp(openCheckpoint(prunedPath).model, OTHER_CUTS); // before hours of training
    const pruned = await this.measure(prunedPath, "measure pruned");
    const training = await stages.once("distill", () => this.distill(teacherPath, prunedPath, plan));
    const student = await this.measure(job.out, "measure student");
    directory.dropCheckpoints();
    const gguf = await this.measuredGguf(job.gguf ?? []);
    const evaluation = await this.evaluate([originalPath, prunedPath, job.out]);
    const smaller = openCheckpoint(job.out).model;
    const roles = { teacher: original.model, pruned: smaller, student: smaller };
    const outcome: CompressOutcome = {
      teacher,
      pruned,
      student,
      plan: summarizePlan(original.model, smaller),
      bytesByKind: bytesByKind(roles, comparedKinds(job.gguf ?? [], original.checkpoint)),
      keptLayers: plan.keptLayers,
      tokens: training.tokens,
      seconds: stages.all.reduce((sum, stage) => sum + stage.seconds, 0),
      tokensPerSecond: training.tokensPerSecond,
      out: job.out,
      gguf,
      evaluation,
    };
    this.writeReport(outcome);
    directory.finish();
    return outcome;
  }

  private writeReport({ out, ...outcome }: CompressOutcome): void {
    const { job, directory } = this.inputs;
    const { teacher, pruned, student, gguf } = outcome;
    const files = gguf?.files.map((file) => [`student, ${file.name}`, file.measured] as const) ?? [];
    const models = { teacher, pruned, student, ...Object.fromEntries(files) };
    writeReport(directory, { ...outcome, name: job.name ?? out, models, stages: this.stages.all });
  }

  /** Measures a model, as a stage. */
  private measure(model: string, stage: string): Promise<Measurement> {
    const { backend, job, validation, settings } = this.inputs;
    const options = { ...job, sequenceLength: settings.sequenceLength };
    return this.stages.once(stage, () => measure(backend, model, validation, stage, options));
  }

  /** Evaluates teacher, pruned model and student on benchmarks, if requested. */
  private async evaluate(models: readonly string[]): Promise<EvaluateOutcome | undefined> {
    const { job, directory } = this.inputs;
    if (job.evaluate === undefined) return undefined;
    const names = ["teacher", "pruned", "student"];
    const { out: _, name: _name, modelName, ...options } = job;
    const { tasks, limit, data } = job.evaluate;
    // a run that may continue on another machine keeps the answers in its own directory
    const answers = modelName ? { directory: directory.file("answers"), identities: names } : undefined;
    return this.stages.once(`evaluate ${JSON.stringify([tasks, limit, data])}`, () =>
      evaluate({ ...options, models, names, answers, tasks, limit, data }),
    );
  }

  /** Quantizes the student and measures each file as it will be delivered. */
  private async measuredGguf(kinds: readonly FileKind[]): Promise<GgufOutcome | undefined> {
    if (kinds.length === 0) return undefined;
    const { files, ...rest } = await this.stages.once(`gguf ${kinds.join()}`, () => this.writeGguf(kinds));
    const measured: MeasuredFile[] = [];
    for (const file of files) {
      const measurement = await this.measure(file.files[0] ?? "", `measure ${file.name}`);
      measured.push({ ...file, measured: { ...measurement, bytes: file.fileBytes } });
    }
    return { ...rest, files: measured };
  }

  /** Quantizes the student, and generates a sentence with the first file, which proves that it runs. */
  private async writeGguf(
    types: readonly FileKind[],
  ): Promise<Omit<GgufOutcome, "files"> & { readonly files: readonly QuantizedFile[] }> {
    const { job, settings, validation, directory } = this.inputs;
    const { files } = await quantize({
      ...job,
      model: job.out,
      types,
      sequenceLength: settings.sequenceLength,
      out: path.join(job.out, "gguf"),
      run: directory,
    });
    const start = new Int32Array(Math.min(PROMPT_TOKENS, validation.length));
    validation.copy(0, start.length, start, 0);
    const prompt = await (await Tokenizer.load(job.out)).decode([...start]);
    const { text } = await generate({
      ...job,
      model: files[0]?.files[0] ?? "",
      prompt,
      sampling: { temperature: 0, maxTokens: SENTENCE_TOKENS },
    });
    return { files, prompt, sentence: /^[\s\S]*?[.!?]["”']?(?=\s|$)/.exec(text)?.[0] ?? text };
  }

  private get sequences(): Sequences {
    return new Sequences(this.inputs.tokens, this.inputs.settings.sequenceLength);
  }

  /** Adapts the teacher to the data, if requested, so that it is a better teacher on it. @returns the teacher's path */
  private async correctTeacher(): Promise<string> {
    const { job, original, settings, directory } = this.inputs;
    const { teacherCorrection = false } = job;
    if (teacherCorrection === false) return original.checkpoint.path;
    const tokens =
      typeof teacherCorrection === "number" ? teacherCorrection : Math.ceil(settings.tokens * CORRECTION_SHARE);
    const corrected = directory.file("corrected-teacher");
    await this.stages.once("correct teacher", () => this.trainTeacher(tokens, corrected));
    await this.measure(corrected, "measure corrected teacher");
    return corrected;
  }

  private async trainTeacher(tokens: number, out: string): Promise<TrainResult> {
    const { backend, job, original, validation, settings, directory } = this.inputs;
    const { checkpoint, model } = original;
    const weights = loadWeights(backend, model, checkpoint.source, { dtype: "f32", trainable: true });
    const learningRate = settings.learningRate * CORRECTION_RATE_SHARE;
    try {
      const result = await runTraining({
        backend,
        stage: "correct teacher",
        isPart: true,
        run: directory.part("teacher-correction"),
        model,
        student: weights,
        objective: crossEntropyObjective,
        sequences: this.sequences,
        validation,
        options: job,
        settings: trainOptionsFor(model, {
          ...forTokens(settings, tokens),
          learningRate,
          minimumLearningRate: learningRate / 10,
        }),
      });
      const place = (name: string) => directory.own("corrected-teacher", name);
      writeTrained(out, checkpoint, weights, { onNote: job.onNote, place });
      return result;
    } finally {
      weights.free();
    }
  }

  /** Scores the teacher and chooses the best plan. */
  private async search(teacherPath: string): Promise<PrunePlan> {
    const { backend, job, tokens, validation, settings } = this.inputs;
    const { computeType } = settings;
    const original = openCheckpoint(teacherPath);
    const weights = loadWeights(backend, original.model, original.source, { dtype: computeType, trainable: false });
    try {
      const options = { ...job, scoresFile: this.scoresFile };
      const inputs = { backend, original, weights, tokens, validation, computeType, options };
      const identity = await this.stages.once("calibrate", async () => {
        await scoresFor(inputs, job.modelName === undefined ? await this.modelIdentity() : undefined);
        return scoresIdentity(this.scoresFile);
      });
      const scores = await this.unchangedScores(identity);
      const statistics = await this.statistics(inputs);
      const { searchTokens } = job;
      const distill = (pruned: PrunedModel) => {
        const briefSettings = forTokens(settings, searchTokens ?? 0);
        return distillBriefly({ backend, teacher: weights, pruned, tokens, validation, settings: briefSettings });
      };
      const rankingFile = this.inputs.directory.own(RANKING_FILE);
      const rounds = { statistics, distill: searchTokens === undefined ? undefined : distill };
      const [best] = await search({ ...inputs, scores }, rounds, rankingFile);
      if (best === undefined) throw new UsageError(`the target ${job.target} has no candidates`);
      return best.plan;
    } finally {
      weights.free();
    }
  }

  private modelIdentity(): Promise<string> {
    const { original, job } = this.inputs;
    return modelIdentity(original.checkpoint, job.cacheDir);
  }

  private get scoresFile(): string {
    const { job, directory } = this.inputs;
    return job.scoresFile === undefined
      ? directory.own("importance.safetensors")
      : ownIfInside(directory, job.scoresFile);
  }

  /** The scores that the run has used from its beginning. @throws UsageError when the file has changed */
  private async unchangedScores(identity: string): Promise<Scores> {
    if ((await scoresIdentity(this.scoresFile)) !== identity)
      throw new UsageError(`${this.scoresFile} has changed since the run began: --restart begins anew with it`);
    return loadScores(this.scoresFile, this.inputs.original.model);
  }

  /** Of the teacher, for a refitted start. */
  private async statistics(inputs: StartInputs): Promise<StartStatistics | undefined> {
    if (this.inputs.job.start === "minitron") return undefined;
    const file = this.inputs.directory.own(REFIT, "statistics.safetensors");
    await this.stages.once("statistics", async () => {
      await startStatistics(inputs, file);
    });
    return startStatistics(inputs, file);
  }

  /** The student before it is distilled. */
  private async start(teacherPath: string, plan: PrunePlan): Promise<PrunedModel> {
    const { backend, job, tokens, settings, directory } = this.inputs;
    const original = openCheckpoint(teacherPath);
    const scores = loadScores(this.scoresFile, original.model);
    const inputs = { backend, original, tokens, computeType: settings.computeType, options: job };
    const statistics = await this.statistics(inputs);
    if (statistics === undefined) return prune(original, plan, keptIndices(original.model, plan, scores));
    noteSelection(inputs, plan);
    return refittedStart(inputs, {
      plan,
      scores,
      statistics,
      place: (name) => directory.own(REFIT, name),
      onProgress: (done, total) => job.onProgress?.({ stage: "refit", done, total, unit: "steps" }),
    });
  }

  private distill(teacherPath: string, prunedPath: string, plan: PrunePlan): Promise<TrainResult> {
    const { backend, job, validation, settings, directory } = this.inputs;
    const pruned = openCheckpoint(prunedPath);
    const intermediate = job.intermediate === true ? { intermediate: defaultIntermediatePairs(plan.keptLayers) } : {};
    return distillStage({
      backend,
      stage: "distill",
      run: directory,
      settings,
      validation,
      options: job,
      teacherPath,
      sequences: this.sequences,
      student: pruned,
      distillation: { ...job.distillation, ...intermediate },
      teacher: job.teacherOptions ?? {},
      cacheDir: job.cacheDir,
      write: (weights) =>
        writeTrained(job.out, pruned, weights, { onNote: job.onNote, place: (name) => directory.own(name) }),
    });
  }
}
