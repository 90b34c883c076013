import { existsSync } from "node:fs";
import path from "node:path";
import { Sequences, Tokenizer, type TokenStream } from "../data/index.js";
import {
  crossEntropyObjective,
  forTokens,
  type RunDirectory,
  type TrainOptions,
  type TrainResult,
} from "../distill/index.js";
import type { Backend } from "../ggml/index.js";
import { openCheckpoint } from "../models/index.js";
import type { FileKind } from "../quantize/index.js";
import { elementAt } from "../system/arrays.js";
import { UsageError } from "../system/errors.js";
import { bytesByKind, comparedKinds } from "./bytes-by-kind.js";
import type { CompressJob, CompressOutcome, GgufOutcome, MeasuredFile } from "./compress-job.js";
import { evaluate } from "./evaluate.js";
import type { EvaluateOutcome } from "./evaluation.js";
import { generate } from "./generate.js";
import { modelIdentity } from "./inputs.js";
import { type Measurement, measure } from "./measure.js";
import { trainableWeights } from "./model-memory.js";
import type { OpenModel } from "./open-model.js";
import { ownIfInside } from "./output.js";
import { summarizePlan } from "./plan-summary.js";
import { type QuantizedFile, quantize } from "./quantize.js";
import { writeReport } from "./report.js";
import { Round, type RoundInputs, type RoundOutcome } from "./round.js";
import { joinMetrics, type PlannedRound, roundFolder } from "./rounds.js";
import { Stages } from "./stages.js";
import { checkTrainingFits, runTraining, trainOptionsFor, writeTrained } from "./training.js";

/** The sample sentence: how many tokens of the validation text are its prompt, and how long it may become. */
const [PROMPT_TOKENS, SENTENCE_TOKENS] = [6, 64];
/** Teacher correction takes a third of the student's tokens (127 B beside 380 B) at a fifth of its learning rate. */
export const CORRECTION_SHARE = 1 / 3;
const CORRECTION_RATE_SHARE = 0.2;

/** The scores of a round's model. */
const SCORES_FILE = "importance.safetensors";

/** What a compression works on. */
export interface CompressionInputs {
  readonly backend: Backend;
  readonly job: CompressJob;
  readonly original: OpenModel;
  /** Training data. */
  readonly tokens: TokenStream;
  readonly validation: TokenStream;
  readonly settings: TrainOptions;
  readonly rounds: readonly PlannedRound[];
  readonly directory: RunDirectory;
}

/** Where a round works, and on what. */
type RoundPlaces = Pick<RoundInputs, "directory" | "place" | "cutPath" | "layers" | "teacherPath"> & {
  readonly out: string;
};

const summaryOf = ({ training, ...round }: RoundOutcome) => ({ ...round, tokens: training.tokens });

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
    this.checkScores();
    this.checkMemory();
    const teacher = await this.measure(originalPath, "measure teacher");
    const correctedPath = await this.correctTeacher();
    const correctedTeacher =
      correctedPath === undefined ? undefined : await this.measure(correctedPath, "measure corrected teacher");
    const rounds = await this.cut(correctedPath ?? originalPath);
    const { keptLayers, pruned, student } = elementAt(rounds, rounds.length - 1);
    const gguf = await this.measuredGguf(job.gguf ?? []);
    const smaller = openCheckpoint(job.out).model;
    const corrected = correctedTeacher === undefined ? {} : { correctedTeacher: original.model };
    const roles = { teacher: original.model, ...corrected, pruned: smaller, student: smaller };
    const tokens = rounds.reduce((total, { training }) => total + training.tokens, 0);
    const trainingSeconds = rounds.reduce((total, { training }) => total + training.seconds, 0);
    const outcomeWith = (evaluation: EvaluateOutcome | undefined): CompressOutcome => ({
      teacher,
      correctedTeacher,
      pruned,
      student,
      plan: summarizePlan(original.model, smaller),
      bytesByKind: bytesByKind(roles, comparedKinds(job.gguf ?? [], original.checkpoint)),
      keptLayers,
      rounds: rounds.length === 1 ? undefined : rounds.map(summaryOf),
      tokens,
      seconds: stages.all.reduce((total, stage) => total + stage.seconds, 0),
      tokensPerSecond: tokens / trainingSeconds,
      out: job.out,
      gguf,
      evaluation,
    });
    if (job.evaluate !== undefined) this.writeReport(outcomeWith(undefined)); // an evaluation takes long, and may fail
    const outcome = outcomeWith(await this.evaluate([originalPath, directory.file("pruned"), job.out]));
    this.writeReport(outcome);
    directory.finish();
    return outcome;
  }

  /** @throws UsageError for scores of the original, where the model that is cut will be a corrected one */
  private checkScores(): void {
    const { teacherCorrection = false, scoresFile } = this.inputs.job;
    if (teacherCorrection === false || this.stages.has("correct teacher")) return;
    if (scoresFile !== undefined && existsSync(scoresFile))
      throw new UsageError(
        `${scoresFile} has scores of the model as it is, and --teacher-correction changes it first: name another file`,
      );
  }

  /** @throws CoppiceError where the first training, of the student or of the teacher that is corrected, will not fit */
  private checkMemory(): void {
    const { backend, job, original, settings } = this.inputs;
    const { checkpoint, model } = original;
    if ((job.teacherCorrection ?? false) !== false && !this.stages.has("correct teacher"))
      checkTrainingFits({ backend, model, settings, options: job });
    const layers = [...Array(model.layerCount).keys()];
    this.round(0, { cutPath: checkpoint.path, layers, teacherPath: checkpoint.path }).checkMemory();
  }

  /** Cuts in rounds, each starting from the student of the one before. */
  private async cut(teacherPath: string): Promise<RoundOutcome[]> {
    const { rounds, original, job } = this.inputs;
    const outcomes: RoundOutcome[] = [];
    let cutPath = teacherPath;
    let layers: readonly number[] = [...Array(original.model.layerCount).keys()];
    for (const i of rounds.keys()) {
      const outcome = await this.round(i, { cutPath, layers, teacherPath }).run();
      outcomes.push(outcome);
      cutPath = i === rounds.length - 1 ? job.out : this.directoryOf(i).file("student");
      layers = outcome.keptLayers;
    }
    return outcomes;
  }

  private round(i: number, subject: Pick<RoundPlaces, "cutPath" | "layers" | "teacherPath">): Round {
    const isLast = i === this.inputs.rounds.length - 1;
    const part = this.directoryOf(i);
    const out = isLast ? this.inputs.job.out : part.file("student");
    const place = (name: string) => (isLast ? part.own(name) : part.own("student", name));
    return new Round(this.roundInputs(i, { directory: part, out, place, ...subject }));
  }

  /** The last round works in the run's directory itself, where its model is the run's result. */
  private directoryOf(i: number): RunDirectory {
    const { rounds, directory } = this.inputs;
    return i === rounds.length - 1 ? directory : directory.part(roundFolder(i + 1));
  }

  private roundInputs(i: number, { out, ...places }: RoundPlaces): RoundInputs {
    const { backend, job, original, tokens, validation, rounds } = this.inputs;
    const prefix = rounds.length === 1 ? "" : `round ${i + 1} of ${rounds.length}: `;
    return {
      backend,
      job: { ...job, out, onProgress: (event) => job.onProgress?.({ ...event, stage: prefix + event.stage }) },
      tokens,
      validation,
      ...elementAt(rounds, i),
      isPart: rounds.length > 1,
      stages: {
        has: (name) => this.stages.has(prefix + name),
        once: (name, work) => this.stages.once(prefix + name, work),
      },
      ...places,
      carryFrom: original.checkpoint.directory,
      scoresFile: this.scoresFile(i),
      identity: async () =>
        i === 0 && job.modelName === undefined
          ? await modelIdentity(openCheckpoint(places.cutPath), job.cacheDir)
          : undefined,
    };
  }

  private writeReport({ out, ...outcome }: CompressOutcome): void {
    const { job, directory, rounds } = this.inputs;
    const { teacher, correctedTeacher, pruned, student, gguf } = outcome;
    const files = gguf?.files.map((file) => [`student, ${file.name}`, file.measured] as const) ?? [];
    const corrected = correctedTeacher === undefined ? {} : { correctedTeacher };
    const models = { teacher, ...corrected, pruned, student, ...Object.fromEntries(files) };
    const metrics = joinMetrics(rounds.map((_, i) => this.directoryOf(i).readMetrics()));
    writeReport(directory, { ...outcome, name: job.name ?? out, models, stages: this.stages.all }, metrics);
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
      evaluate({ ...options, restart: false, models, names, answers, tasks, limit, data }),
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

  /** Adapts the teacher to the data, if requested, so that it is a better teacher on it. @returns its path */
  private async correctTeacher(): Promise<string | undefined> {
    const { job, settings, directory } = this.inputs;
    const { teacherCorrection = false } = job;
    if (teacherCorrection === false) return undefined;
    const tokens =
      typeof teacherCorrection === "number" ? teacherCorrection : Math.ceil(settings.tokens * CORRECTION_SHARE);
    const corrected = directory.file("corrected-teacher");
    await this.stages.once("correct teacher", () => this.trainTeacher(tokens, corrected));
    directory.part("teacher-correction").dropCheckpoints();
    return corrected;
  }

  private async trainTeacher(tokens: number, out: string): Promise<TrainResult> {
    const { backend, job, original, validation, settings, directory } = this.inputs;
    const { checkpoint, model } = original;
    const weights = trainableWeights(backend, checkpoint, settings, job);
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

  /** The scores of the original may be the user's own; later rounds cut other models. */
  private scoresFile(i: number): string {
    const { job, directory } = this.inputs;
    return i === 0 && job.scoresFile !== undefined
      ? ownIfInside(directory, job.scoresFile)
      : this.directoryOf(i).own(SCORES_FILE);
  }
}
