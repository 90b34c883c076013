import { existsSync } from "node:fs";
import { storedType } from "../checkpoint/stored-type.js";
import type { TokenStream } from "../data/index.js";
import { Sequences } from "../data/index.js";
import {
  type DistillationOptions,
  defaultIntermediatePairs,
  forTokens,
  type RunDirectory,
  type TrainResult,
} from "../distill/index.js";
import type { Backend } from "../ggml/index.js";
import { openCheckpoint, wholeWeights } from "../models/index.js";
import {
  type Candidate,
  cutTo,
  keptIndices,
  largestCandidate,
  loadScores,
  type PrunedModel,
  type PrunePlan,
  prune,
  type Scores,
} from "../prune/index.js";
import { elementAt } from "../system/arrays.js";
import { UsageError } from "../system/errors.js";
import { KnownValues } from "../system/known-values.js";
import type { CompressJob } from "./compress-job.js";
import { BRIEF_DISTILLATION, checkDistillationFits, distillBriefly, distillStage } from "./distill.js";
import { scoresIdentity } from "./inputs.js";
import { type Measurement, measure } from "./measure.js";
import { weightsFor } from "./model-memory.js";
import { type PlanSummary, summarizePlan } from "./plan-summary.js";
import { type RoundTraining, withinSizes } from "./rounds.js";
import { RANKING_FILE, REFIT_FOLDER, scoresFor, search } from "./search.js";
import type { Stages } from "./stages.js";
import { noteSelection, refittedStart, type StartInputs, type StartStatistics, startStatistics } from "./start.js";
import { writeTrained } from "./training.js";
import { writeDirectory } from "./write-directory.js";

export interface RoundInputs {
  readonly backend: Backend;
  /** Its `out` is where the round's model goes. */
  readonly job: CompressJob;
  /** Training data. */
  readonly tokens: TokenStream;
  readonly validation: TokenStream;
  readonly training: RoundTraining;
  /** Sizes to choose from. */
  readonly candidates: readonly Candidate[];
  /** Whether other rounds precede or follow. */
  readonly isPart: boolean;
  readonly stages: Pick<Stages, "has" | "once">;
  /** For everything that the round writes but its model. */
  readonly directory: RunDirectory;
  /** The path of a file of the round's model by its name. */
  readonly place: (name: string) => string;
  /** The path of the model to cut. */
  readonly cutPath: string;
  /** The layers of the first model that the model to cut has, counted from 0. */
  readonly layers: readonly number[];
  readonly teacherPath: string;
  /** The directory whose tokenizer, settings and license are copied. */
  readonly carryFrom: string;
  /** Where the scores are kept, or read from if they are there. */
  readonly scoresFile: string;
  /** Identifies the model to cut in the file of scores; undefined for none. */
  readonly identity: () => Promise<string | undefined>;
}

/** What a round has done. */
export interface RoundOutcome {
  /** Each axis's size before and after the round's cut. */
  readonly plan: PlanSummary;
  /** The layers of the first model that are left, counted from 0. */
  readonly keptLayers: readonly number[];
  /** The model as cut, before it was distilled. */
  readonly pruned: Measurement;
  readonly student: Measurement;
  readonly training: TrainResult;
}

/** A cut and what makes up for it, stage by stage: search, prune, measure, distill, measure. */
export class Round {
  constructor(private readonly inputs: RoundInputs) {}

  async run(): Promise<RoundOutcome> {
    const { job, stages, directory, cutPath, carryFrom, layers } = this.inputs;
    const prunedPath = directory.file("pruned");
    this.checkMemory();
    const plan = await stages.once("search", () => this.search());
    await stages.once("prune", async () => {
      const place = (name: string) => directory.own("pruned", name);
      const dtype = job.start === "minitron" ? undefined : storedType(openCheckpoint(cutPath).source); // a refit gives f32
      writeDirectory(await this.start(plan), carryFrom, { ...job, dtype, out: prunedPath, place }, "prune");
    });
    directory.drop(REFIT_FOLDER);
    const smaller = openCheckpoint(prunedPath).model;
    const keptLayers = plan.keptLayers.map((layer) => elementAt(layers, layer));
    const pruned = await this.measure(prunedPath, "measure pruned");
    const training = await stages.once("distill", () => this.distill(prunedPath, keptLayers));
    const student = await this.measure(job.out, "measure student");
    directory.dropCheckpoints();
    return { plan: summarizePlan(openCheckpoint(cutPath).model, smaller), keptLayers, pruned, student, training };
  }

  /**
   * Checks what is still to be trained, if anything is.
   * @throws CoppiceError where the largest student or its teacher will not fit: better now than after hours of search
   */
  checkMemory(): void {
    const { backend, job, training, teacherPath, cutPath, stages, directory } = this.inputs;
    if (stages.has("distill")) return;
    const original = openCheckpoint(cutPath);
    const largest = cutTo(original.model, largestCandidate(this.candidates).sizes);
    const student = stages.has("prune") ? openCheckpoint(directory.file("pruned")).model : largest.model;
    const distillsCandidates = job.searchTokens !== undefined && !stages.has("search");
    checkDistillationFits({
      backend,
      student,
      recipe: { teacherPath, distillation: this.distillation(largest.keptLayers), teacher: job.teacherOptions ?? {} },
      settings: training.settings,
      options: job,
      search: distillsCandidates ? { original: cutPath === teacherPath ? undefined : original } : undefined,
    });
  }

  /** Those that the model to cut can be cut to: the ones of later rounds were counted before. */
  private get candidates(): readonly Candidate[] {
    const { isPart, candidates, cutPath } = this.inputs;
    return isPart ? withinSizes(openCheckpoint(cutPath).model, candidates) : candidates;
  }

  private measure(model: string, stage: string): Promise<Measurement> {
    const { backend, job, validation, training, stages } = this.inputs;
    const options = { ...job, sequenceLength: training.settings.sequenceLength };
    return stages.once(stage, () => measure(backend, model, validation, stage, options));
  }

  /** Scores the model and chooses the best plan. */
  private async search(): Promise<PrunePlan> {
    const { backend, job, tokens, validation, training, stages, directory, cutPath, teacherPath } = this.inputs;
    const { settings } = training;
    const { computeType } = settings;
    const original = openCheckpoint(cutPath);
    const load = (path: string) => weightsFor(backend, openCheckpoint(path), computeType, job);
    const weights = load(cutPath);
    const { searchTokens, target } = job;
    // brief distillations are of the same teacher as the real one
    const teacher = searchTokens === undefined || teacherPath === cutPath ? weights : load(teacherPath);
    try {
      const options = { ...job, scoresFile: this.inputs.scoresFile };
      const place = (name: string) => directory.own(REFIT_FOLDER, name);
      const inputs = { backend, original, weights, tokens, validation, computeType, options, place };
      const identity = await stages.once("calibrate", async () => {
        await scoresFor(inputs, { identity: await this.inputs.identity(), place });
        return scoresIdentity(this.inputs.scoresFile);
      });
      const scores = await this.unchangedScores(identity);
      const statistics = await this.statistics(inputs);
      const distill = (pruned: PrunedModel, id: string) => {
        const briefSettings = forTokens(settings, searchTokens ?? 0);
        const whole = wholeWeights(teacher, BRIEF_DISTILLATION);
        return distillBriefly({
          backend,
          teacher: whole,
          pruned,
          tokens,
          validation,
          settings: briefSettings,
          options,
          run: directory.part(`${REFIT_FOLDER}/brief-${id}`),
        });
      };
      const { candidates } = this;
      const measurements = { statistics, distill: searchTokens === undefined ? undefined : distill };
      const known = new KnownValues(place("measured.json"), identity);
      const searched = { ...inputs, scores, candidates, known };
      const [best] = await search(searched, measurements, directory.own(RANKING_FILE));
      if (best === undefined) throw new UsageError(`the target ${target} has no candidates`);
      return best.plan;
    } finally {
      if (teacher !== weights) teacher.free();
      weights.free();
    }
  }

  /** The scores that the run has used from its beginning. @throws UsageError when the file has changed, or is not there */
  private async unchangedScores(identity: string): Promise<Scores> {
    const { scoresFile, cutPath } = this.inputs;
    if (!existsSync(scoresFile))
      throw new UsageError(
        `the scores that the run began with are not in ${scoresFile}: name the file again that it began with (--scores), or --restart`,
      );
    if ((await scoresIdentity(scoresFile)) !== identity)
      throw new UsageError(`${scoresFile} has changed since the run began: --restart begins anew with it`);
    return loadScores(scoresFile, openCheckpoint(cutPath).model);
  }

  /** Of the model to cut, for a refitted start. */
  private async statistics(inputs: StartInputs): Promise<StartStatistics | undefined> {
    const { job, directory, stages } = this.inputs;
    if (job.start === "minitron") return undefined;
    const place = (name: string) => directory.own(REFIT_FOLDER, name);
    await stages.once("statistics", async () => {
      await startStatistics(inputs, place);
    });
    return startStatistics(inputs, place);
  }

  /** The student before it is distilled. */
  private async start(plan: PrunePlan): Promise<PrunedModel> {
    const { backend, job, tokens, training, directory, stages, cutPath, scoresFile } = this.inputs;
    const original = openCheckpoint(cutPath);
    const scores = await this.unchangedScores(await stages.once("calibrate", () => scoresIdentity(scoresFile)));
    const inputs = { backend, original, tokens, computeType: training.settings.computeType, options: job };
    const statistics = await this.statistics(inputs);
    if (statistics === undefined) return prune(original, plan, keptIndices(original.model, plan, scores));
    noteSelection(inputs, plan);
    return refittedStart(inputs, {
      plan,
      scores,
      statistics,
      place: (name) => directory.own(REFIT_FOLDER, name),
      onProgress: (done, total) => job.onProgress?.({ stage: "refit", done, total, unit: "steps" }),
    });
  }

  private distill(prunedPath: string, keptLayers: readonly number[]): Promise<TrainResult> {
    const { backend, job, tokens, validation, training, directory, place, teacherPath, isPart } = this.inputs;
    const pruned = openCheckpoint(prunedPath);
    return distillStage({
      backend,
      stage: "distill",
      isPart,
      run: directory,
      ...training,
      validation,
      options: job,
      teacherPath,
      sequences: new Sequences(tokens, training.settings.sequenceLength),
      student: pruned,
      distillation: this.distillation(keptLayers),
      teacher: job.teacherOptions ?? {},
      cacheDir: job.cacheDir,
      write: (weights) => writeTrained(job.out, pruned, weights, { onNote: job.onNote, place }),
    });
  }

  private distillation(keptLayers: readonly number[]): Partial<DistillationOptions> {
    const { distillation, intermediate } = this.inputs.job;
    return intermediate === true
      ? { ...distillation, intermediate: defaultIntermediatePairs(keptLayers) }
      : { ...distillation };
  }
}
