// What `./check` runs on the machine that the folder was brought to: what there is, whether each device computes what the processor
// computes, a whole compression, and training steps beside PyTorch's where python3 has torch. Everything goes into one JSON file.
//
//     ./check [--out check.json] [--minutes 8] [--python python3]
import { spawn } from "node:child_process";
import { existsSync, mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import path from "node:path";
import process from "node:process";
import { createInterface } from "node:readline";
import { parseArgs } from "node:util";

const { values } = parseArgs({
  options: {
    out: { type: "string", default: "check.json" },
    minutes: { type: "string", default: "8" },
    python: { type: "string", default: "python3" },
  },
});
const here = import.meta.dirname;
const main = path.join(here, "app/node_modules/coppice/bin/coppice.cjs");
const teacher = path.join(here, "app/node_modules/coppice/examples/tiny-teacher");
const deadline = Date.now() + 60_000 * Number(values.minutes);
const scratch = mkdtempSync(path.join(tmpdir(), "coppice-check-"));

/** Shapes of bench/training.ts, and one of 1.2 B parameters. */
const SHAPES = {
  "15M": { hidden: 288, ffn: 768, layers: 6, heads: 6, vocab: 32000, batch: 4, sequence: 256 },
  "110M": { hidden: 768, ffn: 2048, layers: 12, heads: 12, vocab: 32000, batch: 1, sequence: 512 },
  "60M": { hidden: 384, ffn: 1024, layers: 6, heads: 6, vocab: 131072, batch: 2, sequence: 256 },
  "1.2B": { hidden: 2048, ffn: 8192, layers: 16, heads: 32, vocab: 32000, batch: 1, sequence: 512 },
};

const secondsLeft = () => Math.max(0, (deadline - Date.now()) / 1000);

/** Runs a program until it ends or time is up. */
function run(command, args, limitSeconds = secondsLeft()) {
  return new Promise((resolve) => {
    const started = performance.now();
    const child = spawn(command, args, { stdio: ["ignore", "pipe", "pipe"] });
    let [stdout, stderr, isLate] = ["", "", false];
    const timer = setTimeout(() => {
      isLate = true;
      child.kill("SIGKILL");
    }, 1000 * limitSeconds);
    child.stdout.on("data", (chunk) => {
      stdout += chunk;
    });
    child.stderr.on("data", (chunk) => {
      stderr = (stderr + chunk).slice(-2000);
    });
    child.on("error", (error) => resolve({ failure: error.message }));
    child.on("close", (code, signal) => {
      clearTimeout(timer);
      const seconds = (performance.now() - started) / 1000;
      if (code === 0) resolve({ seconds, stdout });
      else resolve({ seconds, stdout, failure: isLate ? "out of time" : `${signal ?? code}: ${stderr.trim()}` });
    });
  });
}

/** The result of a command of ours. */
async function coppice(...args) {
  console.error(`> coppice ${args.join(" ")}`);
  if (secondsLeft() < 5) return { failure: "out of time" };
  const { seconds, stdout, failure } = await run(process.execPath, [main, ...args, "--json"]);
  try {
    return { seconds, failure, ...JSON.parse(stdout) };
  } catch {
    return { seconds, failure: failure ?? "its output is no JSON" };
  }
}

/** The median of five of PyTorch's steps, in seconds. */
async function pytorch(shape, device, threads, flags) {
  console.error(`> PyTorch on ${device} ${flags.join(" ")}`);
  const numbers = Object.entries({ ...shape, threads }).flatMap(([key, value]) => [`--${key}`, String(value)]);
  const child = spawn(
    values.python,
    [path.join(here, "peers/distill_step.py"), ...numbers, "--device", device, ...flags],
    {
      stdio: ["pipe", "pipe", "ignore"],
    },
  );
  const timer = setTimeout(() => child.kill("SIGKILL"), 1000 * secondsLeft());
  const lines = createInterface({ input: child.stdout })[Symbol.asyncIterator]();
  try {
    if ((await lines.next()).value !== "ready") return { failure: "did not start" };
    const seconds = [];
    for (let i = 0; i < 5; i++) {
      child.stdin.write("step\n");
      const { value } = await lines.next();
      if (value === undefined) return { failure: "out of time" };
      seconds.push(Number(value));
    }
    const median = [...seconds].sort((a, b) => a - b)[2];
    return { seconds, tokensPerSecond: (shape.batch * shape.sequence) / median };
  } finally {
    clearTimeout(timer);
    child.kill();
  }
}

const machine = await coppice("doctor");
// the device that is taken by default, which a software driver never is, then the others
const chosen = machine.devices?.find(({ name }) => name === machine.chosenDevice)?.kind ?? "cpu";
const devices = [...new Set([chosen, "cpu", ...(machine.devices ?? []).map(({ kind }) => kind)])];
const problems = [];
if (machine.failure !== undefined) problems.push(`doctor failed, so only the processor is checked: ${machine.failure}`);
const cuda = path.join(here, "app/node_modules/@node-llama-cpp/linux-x64-cuda");
if (existsSync(cuda) && !devices.includes("cuda"))
  problems.push("this folder is for CUDA, but no such device is found");
const report = { machine, problems, checks: {}, compressions: {}, steps: [] };
const save = () => writeFileSync(values.out, `${JSON.stringify(report, null, 2)}\n`);
for (const device of devices) {
  report.checks[device] = await coppice("check", "--device", device);
  save();
}
const torch = await run(values.python, [
  "-c",
  "import torch, transformers; print(torch.__version__, torch.cuda.is_available())",
]);
report.torch = torch.failure === undefined ? torch.stdout.trim() : undefined;
const torchDevice = report.torch?.endsWith("True") ? "cuda" : "cpu";
async function timeSteps(name) {
  const shape = SHAPES[name];
  const { batch, sequence, ...sizes } = shape;
  const model = Object.entries(sizes).map(([key, value]) => `${key}=${value}`);
  const size = ["--batch-size", String(batch), "--sequence-length", String(sequence)];
  const ours = await coppice("bench", model.join(","), ...size, "--device", chosen);
  const step = { shape: name, device: chosen, ours };
  report.steps.push(step);
  if (report.torch !== undefined) {
    const threads = machine.threads?.inUse ?? machine.cores ?? 1;
    step.bf16 = await pytorch(shape, torchDevice, threads, ["--dtype", "bf16"]);
    step.compiled = await pytorch(shape, torchDevice, threads, ["--dtype", "bf16", "--compile"]);
  }
  save();
}
// the largest shape last: it may take all the time that is left
for (const name of ["15M", "110M", "60M"]) await timeSteps(name);
for (const device of new Set([chosen, "cpu"])) {
  const out = path.join(scratch, device);
  const data = path.join(here, "data/stories.txt");
  const settings = ["--target", "0.67x", "--data", data, "--tokens", "20K", "--device", device, "--out", out];
  report.compressions[device] = await coppice("compress", teacher, ...settings);
  save();
}
await timeSteps("1.2B");
rmSync(scratch, { recursive: true, force: true });

const speed = (result) =>
  result?.failure ?? (result === undefined ? "" : `${result.tokensPerSecond.toFixed(0)} tokens/s`);
for (const [device, { comparisons = [], failure }] of Object.entries(report.checks)) {
  const wrong = comparisons.filter(({ isClose }) => !isClose);
  console.log(
    `${device}: ${comparisons.length - wrong.length} of ${comparisons.length} ops and trainings are the processor's`,
  );
  for (const one of wrong) console.log(`  ${one.name}: ${one.failure ?? `differs by ${one.difference}`}`);
  if (comparisons.length === 0) console.log(`  ${failure}`);
  if (wrong.length > 0 || comparisons.length === 0) process.exitCode = 1;
}
for (const [device, { student, seconds, failure }] of Object.entries(report.compressions)) {
  if (student === undefined) process.exitCode = 1;
  console.log(
    `compress on ${device}: ${student === undefined ? failure : `loss ${student.loss.toFixed(4)} in ${seconds.toFixed(0)} s`}`,
  );
}
for (const { shape, device, ours, bf16, compiled } of report.steps)
  console.log(
    `${shape} on ${device}: ${speed(ours)}; PyTorch bf16 on ${torchDevice} ${speed(bf16)}, compiled ${speed(compiled)}`,
  );
for (const { shape, ours } of report.steps)
  if (ours?.failure !== undefined && !/out of (time|memory)|too little memory|does not fit/.test(ours.failure))
    problems.push(`the ${shape} steps ended: ${ours.failure}`);
for (const problem of problems) console.log(`PROBLEM: ${problem}`);
if (problems.length > 0) process.exitCode = 1;
console.log(`written to ${values.out}`);
