import type { HiddenStates } from "../evaluate/hidden-states.js";
import { overBatches } from "../evaluate/residual-stream.js";
import { agreed, leads } from "../evaluate/team.js";
import { type Matrix, multiply } from "../linear-algebra/index.js";
import { type ModelWeights, type ParameterSpec, type ResidualStep, shapeOf, type Weights } from "../models/index.js";
import { readMatrix } from "../prune/matrices.js";
import { required } from "../system/errors.js";
import { type Graph, ops, type Tensor, TensorStore } from "../tensor/index.js";
import type { RefitInputs, Streams } from "./inputs.js";
import type { MatrixRows } from "./matrix-rows.js";
import { Moments } from "./moments.js";
import { Ridge } from "./ridge.js";
import { projectedScale, rowSizes } from "./scale.js";
import type { Values } from "./start.js";

type RowRange = readonly [from: number, to: number];

/** Some rows of a matrix, without a copy. */
const rowsOf = ({ columns, data }: Matrix, [from, to]: RowRange): Matrix => ({
  rows: to - from,
  columns,
  data: data.subarray(from * columns, to * columns),
});

/** A step of the original, the student's that comes from it, and the name under which its values are kept. */
export interface StepPair {
  readonly dense: ResidualStep;
  readonly student: ResidualStep;
  readonly part: string;
}

/** Refits a step, unless that is done already, and goes through it with both models. */
export async function refitStep(inputs: RefitInputs, streams: Streams, steps: StepPair): Promise<void> {
  const { dense, student } = streams;
  const work = new StepRefit(inputs, streams, steps);
  try {
    await work.run();
    await student.run(steps.student, work.weight);
    dense.advance(steps.dense, work.reached);
  } finally {
    work.free();
  }
}

class StepRefit {
  /** The original's stream after the step. */
  readonly reached: HiddenStates;
  private readonly store: TensorStore;
  /** The original's weights, while they are needed. */
  private denseWeights: ModelWeights | undefined;

  constructor(
    private readonly inputs: RefitInputs,
    private readonly streams: Streams,
    private readonly steps: StepPair,
  ) {
    const { passage, student: model } = inputs;
    const { parameters } = steps.student;
    this.reached = streams.dense.take();
    this.store = new TensorStore(passage.backend, parameters.length);
    for (const spec of parameters)
      this.store.add(spec.name, spec.axes.length === 0 ? [1] : shapeOf(spec, model.sizes), "f32");
    try {
      this.store.allocate();
      this.denseWeights = streams.dense.weightsOf(steps.dense.parameters);
    } catch (error) {
      this.store.free();
      throw error;
    }
  }

  /** The student's weights. */
  readonly weight: Weights = (name) => this.store.get(name);

  async run(): Promise<void> {
    const { start, basis, files, passage } = this.inputs;
    const { part, student, dense } = this.steps;
    const known = leads(passage.team) ? files.read(part) : undefined;
    if (await agreed(passage.team, () => known !== undefined)) {
      await this.loadLeaders(known);
      await this.overBatches((g) => this.recordDense(g));
      return;
    }
    const scale = basis?.read === undefined ? 1 : await projectedScale(passage, this.streams.dense, dense, basis.write);
    this.load(await start.step(student, scale));
    await this.refitReaders();
    if (student.isNormedAfter) await this.refitNormedWriter();
    else {
      this.releaseDense(); // its result is known
      await this.refitWriter();
    }
    if (leads(passage.team))
      await files.write(part, { matrices: student.parameters.map(({ name }) => this.stored(name)) });
  }

  /** @param known what the leader has read */
  private async loadLeaders(known: Values | undefined): Promise<void> {
    const { team } = this.inputs.passage;
    for (const { name } of this.steps.student.parameters) {
      const data = known?.get(name) ?? this.store.read(this.weight(name));
      await team?.broadcast(data, 0);
      this.write(name, data);
    }
  }

  private load(values: Values): void {
    for (const [name, data] of values) this.write(name, data);
  }

  private set({ name }: ParameterSpec, { data }: Matrix): void {
    this.write(name, data);
  }

  /** Later steps make up for rounding, too. @param data is rounded to what is kept of it */
  private write(name: string, data: Float32Array): void {
    this.inputs.files.round(data);
    this.store.write(this.store.get(name), data);
  }

  /** A parameter's values so far. */
  private matrixOf(spec: ParameterSpec): Matrix {
    const [rows, columns] = shapeOf(spec, this.inputs.student.sizes) as [number, number];
    return { rows, columns, data: this.store.read(this.weight(spec.name)) };
  }

  private stored(name: string): MatrixRows {
    const { store } = this;
    return {
      name,
      async *blocks() {
        yield store.read(store.get(name));
      },
    };
  }

  private overBatches = (build: Parameters<typeof overBatches>[1]): Promise<void> =>
    overBatches(this.inputs.passage, build);

  /** The original's step, whose result is kept as `reached`. */
  private recordDense(g: Graph) {
    const weights = required(this.denseWeights, "the original's weights are released");
    const recorded = this.streams.dense.record(g, this.steps.dense, weights.get, "original");
    return { ...recorded, writes: [[recorded.after, this.reached] as const] };
  }

  private recordStudent(g: Graph) {
    return this.streams.student.record(g, this.steps.student, this.weight, "student");
  }

  /**
   * Sums moments over the data, and solves for matrices.
   * @param what is regressed, for messages @param solve is given the moments and the regression
   */
  private async regress(
    what: string,
    sizes: readonly [inputs: number, targets: number],
    build: (g: Graph, moments: Moments) => ReturnType<Parameters<typeof overBatches>[1]>,
    solve: (targets: Matrix, ridge: Ridge) => Promise<void>,
  ): Promise<void> {
    const { backend } = this.inputs.passage;
    const moments = new Moments(backend, what, sizes);
    try {
      await this.overBatches((g) => build(g, moments));
      await moments.sumOver(this.inputs.passage.team);
      const ridge = await Ridge.overwrite(backend, moments.inputs);
      try {
        await solve(moments.targets, ridge);
      } finally {
        ridge.free();
      }
    } finally {
      moments.free();
    }
  }

  /** Solves for a matrix; each process of a team for some of its rows. @param targets the regression's, of some rows */
  private async solve(
    spec: ParameterSpec,
    ridge: Ridge,
    targets: (rows: RowRange) => Matrix | Promise<Matrix>,
  ): Promise<void> {
    const { team } = this.inputs.passage;
    const start = this.matrixOf(spec);
    const { rows, columns, data } = start;
    if (team === undefined) {
      this.set(spec, await ridge.solve(await targets([0, rows]), start));
      return;
    }
    const own = team.share(rows, team.rank);
    if (own[0] < own[1]) data.set((await ridge.solve(await targets(own), rowsOf(start, own))).data, own[0] * columns);
    for (let rank = 0; rank < team.size; rank++) {
      const part = rowsOf(start, team.share(rows, rank)).data;
      if (part.length > 0) await team.broadcast(part, rank);
    }
    this.set(spec, start);
  }

  /** From the student's normalized stream to what the original's matrices give on its own. */
  private refitReaders(): Promise<void> {
    const { within, passage } = this.inputs;
    const { dense, student } = this.streams;
    return this.regress(
      this.steps.student.input,
      [student.width, dense.width],
      (g, moments) => {
        const original = this.recordDense(g);
        const smaller = this.recordStudent(g);
        moments.add(g, smaller.readersInput, original.readersInput);
        return { reads: [...original.reads, ...smaller.reads], writes: original.writes };
      },
      async (cross, ridge) => {
        for (const spec of this.steps.student.readers) {
          const original = readMatrix(within, spec.name);
          await this.solve(spec, ridge, (rows) => multiply(passage.backend, rowsOf(original, rows), cross));
        }
      },
    );
  }

  private async refitWriter(): Promise<void> {
    const { writer } = this.steps.student;
    const [outputs, inputs] = shapeOf(writer, this.inputs.student.sizes) as [number, number];
    const target = await this.target();
    try {
      await this.regress(
        writer.name,
        [inputs, outputs],
        (g, moments) => {
          const { before, writerInput, reads } = this.recordStudent(g);
          const goal = g.input("target", "f32", before.shape);
          const reached = g.input("reached", "f32", [before.shape[0] as number, this.streams.dense.width]);
          const size = rowSizes(g, reached);
          const lacking = ops.div(g, this.lacking(g, goal, before), size);
          moments.add(g, ops.div(g, writerInput, size), lacking);
          return { reads: [...reads, [goal, target], [reached, this.reached]] };
        },
        (targets, ridge) => this.solve(writer, ridge, (rows) => rowsOf(targets, rows)),
      );
    } finally {
      if (target !== this.reached) this.streams.student.giveBack(target);
    }
  }

  /** What the writer's product should be for the student to reach a goal. */
  private lacking(g: Graph, goal: Tensor, before: Tensor): Tensor {
    const { scale, writerBias } = this.steps.student;
    const difference = ops.scale(g, ops.sub(g, goal, before), { factor: 1 / scale });
    return writerBias === undefined ? difference : ops.sub(g, difference, this.weight(writerBias.name));
  }

  /** The original's stream after the step, in the student's width. */
  private async target(): Promise<HiddenStates> {
    const { passage, basis } = this.inputs;
    const { dense, student } = this.streams;
    if (basis === undefined) return this.reached;
    const target = student.take();
    const { write } = basis;
    // in f32: small differences of large numbers are regressed on
    await overBatches({ ...passage, computeType: "f32" }, (g) => {
      const [batch, seq] = [passage.layout.batch, passage.layout.seq];
      const reached = g.input("reached", "f32", [batch * seq, dense.width]);
      const matrix = g.constant("basis", "f32", [write.rows, write.columns], write.data);
      return {
        reads: [[reached, this.reached]],
        writes: [[ops.linear(g, reached, matrix, { transposed: true }), target]],
      };
    });
    return target;
  }

  /** Where a norm follows, from what the writer multiplies in the student to what it gives in the original. */
  private refitNormedWriter(): Promise<void> {
    const { dense, student, basis, passage } = this.inputs;
    const original = this.steps.dense.writer;
    const { writer } = this.steps.student;
    const [, inputs] = shapeOf(writer, student.sizes) as [number, number];
    const [, denseInputs] = shapeOf(original, dense.model.sizes) as [number, number];
    return this.regress(
      writer.name,
      [inputs, denseInputs],
      (g, moments) => {
        const larger = this.recordDense(g);
        const smaller = this.recordStudent(g);
        moments.add(g, smaller.writerInput, larger.writerInput);
        return { reads: [...larger.reads, ...smaller.reads], writes: larger.writes };
      },
      async (cross, ridge) => {
        const whole = readMatrix(dense.source, original.name);
        const kept =
          basis === undefined ? whole : await multiply(passage.backend, basis.write, whole, { transposeA: true });
        await this.solve(writer, ridge, (rows) => multiply(passage.backend, rowsOf(kept, rows), cross));
      },
    );
  }

  private releaseDense(): void {
    this.denseWeights?.free();
    this.denseWeights = undefined;
  }

  free(): void {
    this.releaseDense();
    this.store.free();
  }
}
