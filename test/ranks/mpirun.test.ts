import { type ChildProcess, execFile, spawn, spawnSync } from "node:child_process";
import { once } from "node:events";
import { cpSync, existsSync, mkdirSync, mkdtempSync, readdirSync, readFileSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import path from "node:path";
import { promisify } from "node:util";
import { afterAll, afterEach, beforeAll, describe, expect, it } from "vitest";
import { openCheckpoint } from "../../src/models/index.js";
import { loadScores } from "../../src/prune/index.js";
import { readMatrix } from "../../src/prune/matrices.js";

const root = path.resolve(import.meta.dirname, "../..");
const heldOut = path.join(root, "examples/corpus/held-out.txt");
const program = path.join(root, "bin/coppice.cjs");
const teacher = path.join(root, "examples/tiny-teacher");
const corpus = path.join(root, "examples/corpus");

/** Debian's names, which tell the two apart. */
const LAUNCHERS = {
  "Open MPI": ["mpirun.openmpi", "--oversubscribe"],
  MPICH: ["mpirun.mpich"],
} as const;
const isThere = (command: string) => spawnSync(command, ["--version"]).error === undefined;
const present = Object.entries(LAUNCHERS).filter(([, [command]]) => isThere(command));
if (present.length < 2)
  console.warn("skipped with MPI: not both of Open MPI and MPICH are installed (Debian: openmpi-bin, mpich)");

// a container's root is no risk to the machine
const environment = () => ({
  ...process.env,
  OMPI_ALLOW_RUN_AS_ROOT: "1",
  OMPI_ALLOW_RUN_AS_ROOT_CONFIRM: "1",
  COPPICE_THREADS: "1",
});
afterEach(() => {
  delete process.env.COPPICE_KERNELS;
  delete process.env.COPPICE_MPI;
});
const directory = mkdtempSync(path.join(tmpdir(), "coppice-mpi-"));
afterAll(() => rmSync(directory, { recursive: true, force: true }));
const student = path.join(directory, "student");
const at = (name: string) => path.join(directory, name);

const run = promisify(execFile);
const coppice = (...args: readonly string[]) => run(process.execPath, [program, ...args], { env: environment() });
const onRanks = (launcher: readonly string[], ranks: number, ...args: readonly string[]) => {
  const [command = "", ...flags] = launcher;
  return run(command, [...flags, "-n", String(ranks), process.execPath, program, ...args], { env: environment() });
};

/** Tokens of a job that is stopped on its way, and its steps. */
const [LONG, STEPS] = [16_000, 84];

/** In f32: where processors round products to bf16, small differences of sums grow from step to step. */
const distill = (out: string, tokens = 1200): string[] => [
  ...["distill", student, "--teacher", teacher, "--data", corpus, "--tokens", String(tokens)],
  ...["--sequence-length", "32", "--batch-size", "6", "--compute", "f32", "--out", at(out), "--json"],
];
const prune = (out: string, scores: string): string[] => [
  ...["prune", teacher, "--target", "0.67x", "--data", heldOut, "--samples", "64", "--candidates", "4"],
  ...["--start", "minitron", "--scores", at(scores), "--out", at(out)],
];
const lossesOf = (out: string): number[] =>
  readFileSync(at(`${out}/metrics.jsonl`), "utf8")
    .trim()
    .split("\n")
    .map((line) => (JSON.parse(line) as { loss: number }).loss);
const weightsOf = (out: string) => readFileSync(at(`${out}/model.safetensors`));

const norm = (values: Float32Array): number => Math.sqrt(values.reduce((sum, value) => sum + value * value, 0));

function expectClose(values: readonly number[], others: readonly number[], tolerance: number): void {
  expect(values).toHaveLength(others.length);
  values.forEach((value, i) => {
    expect(Math.abs(value - (others[i] ?? Number.NaN))).toBeLessThan(tolerance * Math.abs(value) + 1e-6);
  });
}

describe.skipIf(present.length === 0)("a job that mpirun starts in several processes", () => {
  beforeAll(async () => {
    await coppice(...prune("student", "one.scores"));
    await coppice(...distill("one"));
  });

  it("computes its batches in parts where they do not fit in memory", async () => {
    const [launcher = []] = present.map(([, each]) => each);
    const { stderr } = await onRanks(launcher, 2, ...distill("in parts"), "--memory", "13.2MB");
    expect(stderr).toMatch(/a process's part of 6 sequences does not fit in .*: 1 is computed at a time/);
    expectClose(lossesOf("in parts"), lossesOf("one"), 1e-4);
  });

  it("computes a part of a streamed teacher's predictions in each process", async () => {
    const [launcher = []] = present.map(([, each]) => each);
    const cached = (out: string) => [...distill(out), "--teacher-cache"];
    await coppice(...cached("whole teacher"));
    const cache = at("cache of ranks");
    const [command = "", ...flags] = launcher;
    const args = [...cached("streamed teacher"), "--memory", "13.2MB"];
    const { stderr } = await run(command, [...flags, "-n", "3", process.execPath, program, ...args], {
      env: { ...environment(), COPPICE_CACHE: cache },
    });
    expect(stderr).toContain("teacher's logits");
    const [logits = ""] = readdirSync(path.join(cache, "logits"));
    const files = readdirSync(path.join(cache, "logits", logits)).filter((name) => name.startsWith("entries"));
    expect(files).toHaveLength(3);
    const [streamed, whole] = [lossesOf("streamed teacher"), lossesOf("whole teacher")];
    expectClose(streamed.slice(0, 1), whole.slice(0, 1), 1e-5); // by the same predictions
    expectClose(streamed, whole, 1e-3); // later ones follow gradients that were summed in another order
  });

  it.each(present)("trains as one does, by %s, and to the same bits when it is repeated", async (name, launcher) => {
    const numbers = launcher === present[0]?.[1] ? [2, 3] : [2];
    for (const ranks of numbers) await onRanks(launcher, ranks, ...distill(`${name} ${ranks}`));
    await onRanks(launcher, 2, ...distill(`${name} again`));
    for (const ranks of numbers) expectClose(lossesOf(`${name} ${ranks}`), lossesOf("one"), 1e-3);
    expect(weightsOf(`${name} again`).equals(weightsOf(`${name} 2`))).toBe(true);
    expect(weightsOf(`${name} 2`).equals(weightsOf("one"))).toBe(false); // sums in another order: so they were shared
  });

  it.each(present)("refits a cut as one does, by %s", async (name, launcher) => {
    process.env.COPPICE_KERNELS = "none";
    if (!existsSync(at("teacher in f32")))
      await coppice("export", teacher, "--dtype", "f32", "--out", at("teacher in f32"));
    const refit = (out: string) => [
      ...["prune", at("teacher in f32"), "--target", "hidden=88,ffn=376", "--start", "refit", "--data", corpus],
      ...["--samples", "32", "--refit-samples", "32", "--scores", at("refit.scores"), "--out", at(out)],
    ];
    if (!existsSync(at("refit by one"))) await coppice(...refit("refit by one"));
    await onRanks(launcher, 2, ...refit(`refit by ${name}`));
    const [alone, shared] = ["refit by one", `refit by ${name}`].map((out) => openCheckpoint(at(out)));
    for (const parameter of alone!.model.parameters) {
      const [expected, values] = [alone!, shared!].map(({ source }) => readMatrix(source, parameter.name).data);
      const size = norm(expected!);
      expect(norm(expected!.map((value, i) => value - values![i]!))).toBeLessThan(1e-2 * size);
    }
    // sums in another order: so they were shared
    expect(weightsOf(`refit by ${name}`).equals(weightsOf("refit by one"))).toBe(false);
  });

  it("trains as one does where there are no kernels of ours", async () => {
    const [[, launcher = []] = []] = present;
    process.env.COPPICE_KERNELS = "none";
    await coppice(...distill("plain one"));
    await onRanks(launcher, 2, ...distill("plain two"));
    expectClose(lossesOf("plain two"), lossesOf("plain one"), 1e-3);
    expect(weightsOf("plain two").equals(weightsOf("plain one"))).toBe(false);
  });

  it.each(present)(
    "ends with an error when %s loses a process, and goes on with another number of them",
    async (name, [command, ...flags]) => {
      const out = `${name} killed`;
      const args = [...flags, "-n", "2", process.execPath, program, ...distill(out, LONG)];
      const job = spawn(command, args, { env: environment(), stdio: "ignore" });
      await untilCheckpoint(at(out), job);
      const [leader, victim] = [processOf(at(out), 0), processOf(at(out), 1)];
      process.kill(victim, "SIGKILL");
      const [code, signal] = await once(job, "exit");
      expect(code ?? signal).not.toBe(0);
      while (isAlive(leader)) await new Promise((resolve) => setTimeout(resolve, 20)); // mpirun does not wait for those it kills
      const before = lossesOf(out).length;
      expect(before).toBeLessThan(STEPS);
      await coppice(...distill(out, LONG));
      expect(lossesOf(out)).toHaveLength(STEPS);
    },
  );

  it.each(present)("measures, calibrates and searches as one does, by %s", async (name, launcher) => {
    const alone = JSON.parse((await coppice("perplexity", teacher, "--data", heldOut, "--json")).stdout);
    const shared = JSON.parse((await onRanks(launcher, 2, "perplexity", teacher, "--data", heldOut, "--json")).stdout);
    expect(shared.tokens).toBe(alone.tokens);
    expect(shared.loss).toBeCloseTo(alone.loss, 6);
    await onRanks(launcher, 2, ...prune(`${name} cut`, `${name}.scores`));
    const { model } = openCheckpoint(teacher);
    const [one, two] = [loadScores(at("one.scores"), model), loadScores(at(`${name}.scores`), model)];
    for (const [dimension, values] of one) expectClose([...values], [...(two.get(dimension) ?? [])], 1e-4);
    const config = (folder: string) => readFileSync(path.join(folder, "config.json"), "utf8");
    expect(config(at(`${name} cut`))).toBe(config(student));
  });

  it("ends with an error where a process sees another model, or none", async () => {
    const [command = "", ...flags] = present[0]?.[1] ?? [];
    const there = ["here", "there", "nowhere"].map((name) => at(name));
    for (const folder of there) mkdirSync(folder);
    cpSync(teacher, path.join(at("here"), "model"), { recursive: true });
    cpSync(at("one"), path.join(at("there"), "model"), { recursive: true }); // trained: of the same names, with other numbers
    const measure = (second: string) => {
      const each = [process.execPath, program, "perplexity", "model", "--data", heldOut];
      const inFolder = (folder: string) => ["-n", "1", "-wdir", folder, ...each];
      return run(command, [...flags, ...inFolder(at("here")), ":", ...inFolder(second)], { env: environment() });
    };
    await measure(at("here"));
    for (const [folder, message] of [
      [at("there"), /model is not the model that the leader has there/],
      [at("nowhere"), /all processes must see the leader's files/],
    ] as const) {
      const failure = await measure(folder).catch((error) => error);
      expect(failure.code).not.toBe(0);
      expect(failure.stderr).toMatch(message);
    }
  });

  it.each(present.slice(0, 1))(
    "stops statistics and refits after a step, by %s, and goes on with them",
    async (name, [command, ...flags]) => {
      const out = at(`${name} stopped`);
      const args = [
        ...["prune", teacher, "--target", "ffn=256", "--start", "refit", "--data", corpus, "--samples", "16"],
        ...["--refit-samples", "96", "--out", out],
      ];
      for (const started of [/^statistics-so-far/, /-step-\d+\.safetensors$/]) {
        const job = spawn(command, [...flags, "-n", "2", process.execPath, program, ...args], {
          env: environment(),
          stdio: "ignore",
        });
        const ended = once(job, "exit");
        const files = () => (existsSync(path.join(out, "refit")) ? readdirSync(path.join(out, "refit")) : []);
        while (!files().some((file) => started.test(file))) {
          if (job.exitCode !== null) throw new Error(`the job ended with ${job.exitCode}`);
          await new Promise((resolve) => setTimeout(resolve, 5));
        }
        process.kill(processOf(out, 0), "SIGTERM");
        const [code, signal] = await ended;
        expect(code ?? signal).not.toBe(0);
        expect(existsSync(path.join(out, "run.lock"))).toBe(false);
      }
      await onRanks([command, ...flags], 2, ...args);
      expect(openCheckpoint(out).config.intermediate_size).toBe(256);
    },
  );

  it.skipIf(present.length < 2)(
    "is refused by a library of another MPI, instead of being done by each process",
    async () => {
      process.env.COPPICE_MPI = "libmpi.so.40";
      const failure = await onRanks(LAUNCHERS.MPICH, 2, ...distill("other")).catch((error) => error);
      expect(failure.code).toBe(1);
      expect(failure.stderr).toMatch(/mpiexec started 2 processes, but libmpi.so.40 knows of one/);
      expect(existsSync(at("other"))).toBe(false);
    },
  );

  it.each(present)(
    "with a mistake says so once, by %s, with the exit code of a wrong usage",
    async (name, launcher) => {
      const failure = await onRanks(launcher, 7, ...distill(`${name} too small`)).catch((error) => error);
      expect(failure.code).toBe(2);
      expect(failure.stderr.match(/a batch of 6 sequences cannot be shared by 7 processes/g)).toHaveLength(1);
    },
  );
});

/** Waits until a run has a checkpoint. @throws Error when its job ends before */
async function untilCheckpoint(out: string, job: ChildProcess): Promise<void> {
  const folder = path.join(out, "checkpoints");
  const states = () =>
    (existsSync(folder) ? readdirSync(folder) : []).map((name) => path.join(folder, name, "state.json"));
  while (!states().some((file) => existsSync(file))) {
    if (job.exitCode !== null) throw new Error(`the job ended with ${job.exitCode} before it had a checkpoint`);
    await new Promise((resolve) => setTimeout(resolve, 20));
  }
}

function isAlive(pid: number): boolean {
  try {
    process.kill(pid, 0);
    return true;
  } catch {
    return false;
  }
}

/** The process of a rank that writes to a directory, by what its launcher told it. */
function processOf(out: string, rank: number): number {
  const { stdout } = spawnSync("ps", ["-eww", "-o", "pid=,args="], { encoding: "utf8" });
  const pids = stdout
    .split("\n")
    .filter((line) => line.includes(out) && line.replace(/^ *\d+ /, "").startsWith(process.execPath))
    .map((line) => Number.parseInt(line, 10));
  const isRank = (pid: number) => {
    const variables = readFileSync(`/proc/${pid}/environ`, "utf8").split("\0");
    return [`OMPI_COMM_WORLD_RANK=${rank}`, `PMI_RANK=${rank}`].some((one) => variables.includes(one));
  };
  const pid = pids.find(isRank);
  if (pid === undefined) throw new Error(`no process of rank ${rank} among ${pids}`);
  return pid;
}
