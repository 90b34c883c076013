/**
 * Ill-treats the command line: options at random from what each command declares, files damaged, outputs in odd places. What may not
 * happen, whatever is asked: a file of the user's is lost or changed, a stack trace, a signal, a half result, a success whose result
 * differs from the plain run's. `tsx bench/cli-fuzz.ts --minutes 120 --seed 1`
 */
import { spawn } from "node:child_process";
import {
  cpSync,
  existsSync,
  lstatSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  readlinkSync,
  rmSync,
  symlinkSync,
  writeFileSync,
} from "node:fs";
import { tmpdir } from "node:os";
import path from "node:path";
import { parseArgs } from "node:util";
import type { Command, Option } from "commander";
import { corpus } from "../examples/corpus.js";
import { compressCommand } from "../src/cli/compress.js";
import { distillCommand } from "../src/cli/distill.js";
import { evaluateCommand } from "../src/cli/evaluate.js";
import { exportCommand } from "../src/cli/export.js";
import { generateCommand } from "../src/cli/generate.js";
import { inspectCommand } from "../src/cli/inspect.js";
import { perplexityCommand } from "../src/cli/perplexity.js";
import { planCommand } from "../src/cli/plan.js";
import { pretrainCommand } from "../src/cli/pretrain.js";
import { pruneCommand } from "../src/cli/prune.js";
import { quantizeCommand } from "../src/cli/quantize.js";
import { FILE_KINDS } from "../src/quantize/index.js";
import { hashBytes } from "../src/system/files.js";
import { Random } from "../src/system/random.js";

const { values } = parseArgs({
  options: {
    minutes: { type: "string", default: "10" },
    seed: { type: "string", default: "1" },
    case: { type: "string" },
    dir: { type: "string", default: tmpdir() },
  },
});
const root = path.resolve(import.meta.dirname, "..");
const teacher = path.join(root, "examples/tiny-teacher");
const scratch = mkdtempSync(path.join(values.dir, "coppice-fuzz-"));
const template = path.join(scratch, "template");
const SECONDS = 90;

/** Commands, and what each is given so that it ends in seconds. */
const TRAINING = ["--tokens", "500", "--sequence-length", "32", "--batch-size", "4"];
const DATA = ["--data", "data.txt"];
const SEARCH = ["--samples", "4", "--candidates", "2"];
const COMMANDS: readonly { readonly command: Command; readonly plain: readonly string[]; readonly out?: string }[] = [
  { command: inspectCommand, plain: ["model"] },
  { command: planCommand, plain: ["model", "--target", "0.8x", ...DATA, ...SEARCH] },
  { command: pruneCommand, plain: ["model", "--target", "hidden=96,ffn=256", ...DATA, ...SEARCH], out: "new" },
  { command: distillCommand, plain: ["pruned", "--teacher", "model", ...DATA, ...TRAINING], out: "new" },
  { command: pretrainCommand, plain: ["model", ...DATA, ...TRAINING], out: "new" },
  {
    command: compressCommand,
    plain: ["model", "--target", "0.8x", ...DATA, ...SEARCH, ...TRAINING],
    out: "new",
  },
  { command: evaluateCommand, plain: ["model", "--tasks", "piqa", "--limit", "2", "--data", "benchmarks"], out: "new" },
  { command: perplexityCommand, plain: ["model", ...DATA, "--sequence-length", "64"] },
  { command: exportCommand, plain: ["model"], out: "new.gguf" },
  { command: quantizeCommand, plain: ["model", "--type", "q8_0"], out: "new.gguf" },
  { command: generateCommand, plain: ["model", "--prompt", "One", "--max-tokens", "4", "--seed", "7"] },
];

interface Outcome {
  readonly status: number | null;
  readonly signal: string | null;
  readonly timedOut: boolean;
  readonly stdout: string;
  readonly stderr: string;
}

function coppice(cwd: string, args: readonly string[], seconds = SECONDS): Promise<Outcome> {
  const env = { ...process.env, COPPICE_CACHE: path.join(scratch, "cache"), HF_HUB_OFFLINE: "1", HOME: scratch };
  const child = spawn(process.execPath, [path.join(root, "bin/coppice.cjs"), ...args, "--json"], {
    cwd,
    env,
    stdio: ["ignore", "pipe", "pipe"],
  });
  let [stdout, stderr, timedOut] = ["", "", false];
  child.stdout.on("data", (chunk) => {
    stdout += chunk;
  });
  child.stderr.on("data", (chunk) => {
    stderr += chunk;
  });
  const timer = setTimeout(() => {
    timedOut = true;
    child.kill("SIGKILL");
  }, 1000 * seconds);
  return new Promise((resolve) =>
    child.once("close", (status, signal) => {
      clearTimeout(timer);
      resolve({ status, signal, timedOut, stdout, stderr });
    }),
  );
}

/** Makes the tree that every case begins with: models, data, a finished run with notes in it, links. */
async function prepare(): Promise<void> {
  mkdirSync(template);
  const at = (...names: string[]) => path.join(template, ...names);
  cpSync(teacher, at("model"), { recursive: true });
  cpSync(path.join(root, "test/fixtures/benchmarks"), at("benchmarks"), { recursive: true });
  writeFileSync(at("data.txt"), corpus(5, 150));
  mkdirSync(at("texts"));
  writeFileSync(at("texts", "rows.jsonl"), `${JSON.stringify({ text: corpus(6, 100) })}\n`);
  writeFileSync(at("notes.md"), "mine\n");
  mkdirSync(at("full"));
  writeFileSync(at("full", "precious.bin"), "mine");
  mkdirSync(at("empty"));
  const common = ["--device", "cpu", "--threads", "2"];
  for (const args of [
    ["prune", "model", "--target", "hidden=96,ffn=256", ...DATA, "--samples", "4", "--out", "pruned"],
    ["distill", "pruned", "--teacher", "model", ...DATA, ...TRAINING, "--out", "run"],
    ["export", "model", "--out", "model.gguf"],
    ["quantize", "model", "--type", "q4_0", "--out", "small.gguf"],
  ]) {
    const { status, stderr } = await coppice(template, [...args, ...common], 600);
    if (status !== 0) throw new Error(`${args.join(" ")}: ${stderr}`);
  }
  writeFileSync(at("run", "my-notes.md"), "mine");
  symlinkSync("model", at("link"));
}

/** Every file and link below a directory with what it holds. */
function witness(directory: string): Map<string, string> {
  const found = new Map<string, string>();
  for (const entry of readdirSync(directory, { recursive: true, withFileTypes: true })) {
    const file = path.join(entry.parentPath, entry.name);
    if (lstatSync(file).isSymbolicLink()) found.set(path.relative(directory, file), `-> ${readlinkSync(file)}`);
    else if (entry.isFile()) found.set(path.relative(directory, file), hashBytes(readFileSync(file)));
  }
  return found;
}

const MODELS = ["model", "pruned", "run", "link", "model.gguf", "small.gguf", "empty", "full", "notes.md", "nowhere"];
const PLACES = [
  "new",
  "new/deep",
  "empty",
  "full",
  "run",
  "pruned",
  "model",
  "model/inner",
  "link",
  "link/inner",
  ".",
  "..",
  "",
  "notes.md",
  "notes.md/x",
  "data.txt",
  "texts",
  "new.gguf",
  "model.gguf",
  "small.gguf",
  "model/x.gguf",
  "empty/x.gguf",
];
const TEXTS = [
  "data.txt",
  "texts",
  "texts/*.jsonl",
  "*.txt",
  "model",
  "notes.md",
  "full/precious.bin",
  "nowhere",
  "small.gguf",
];
const NUMBERS = [
  "0",
  "1",
  "2",
  "3",
  "8",
  "64",
  "500",
  "-1",
  "0.5",
  "1e3",
  "abc",
  "",
  "1e400",
  "NaN",
  "99999999999999999999",
];

class Case {
  private readonly random: Random;
  damaged: string | undefined;
  /** Whether its success must be the plain run's: nothing was damaged, or a model, where it may not go unnoticed. */
  isComparable = false;
  /** Seconds after which it is killed, and begun again. */
  readonly killedAfter: number | undefined;

  constructor(readonly number: number) {
    this.random = new Random(number, 77);
    for (let i = 0; i < 8; i++) this.random.uint32();
    this.killedAfter = this.chance(0.1) ? 0.5 + 4 * this.random.uniform() : undefined;
    this.isComparable = this.killedAfter !== undefined || this.chance(0.1);
  }

  private chance(share: number): boolean {
    return this.random.uniform() < share;
  }

  private pick<T>(from: readonly T[]): T {
    return from[this.random.integer(from.length)] as T;
  }

  /** The command line, without its program. */
  arguments(): { readonly args: string[]; readonly out: string | undefined } {
    const { command, plain, out: usual } = this.pick(COMMANDS);
    const args = [...plain];
    if (this.chance(0.3)) args[0] = this.pick(MODELS);
    const out = usual === undefined ? undefined : this.chance(0.5) ? usual : this.pick(PLACES);
    if (out !== undefined) args.push("--out", out);
    for (const option of command.options)
      if (option.long !== "--out" && option.long !== "--json" && option.long !== "--device" && this.chance(0.05))
        args.push(option.long ?? "", ...this.valueOf(option));
    return { args: [command.name(), ...args, "--device", "cpu"], out };
  }

  private valueOf(option: Option): string[] {
    if (!option.required && !option.optional) return [];
    if (option.argChoices !== undefined) return [this.chance(0.9) ? this.pick(option.argChoices) : "bogus"];
    if (/paths|data/.test(option.flags)) return [this.pick(TEXTS), ...(this.chance(0.3) ? [this.pick(TEXTS)] : [])];
    if (/model/.test(option.flags)) return [this.pick(MODELS)];
    if (/file|dir|path/.test(option.flags)) return [this.pick([...PLACES, "scores.safetensors"])];
    if (/kind|type|list/.test(option.flags) && !/axes/.test(option.flags))
      return [this.chance(0.8) ? this.pick(FILE_KINDS) : "bogus"];
    if (/axes/.test(option.flags)) return [this.pick(["hidden", "hidden,ffn,layers", "heads", "bogus", ""])];
    if (/target/.test(option.flags))
      return [this.pick(["0.5x", "100K", "300KiB", "hidden=64", "2x", "tiny", "phone-8gb"])];
    if (/sizes/.test(option.flags)) return [this.pick(["hidden=32", "ffn=64", "hidden=0", "x=1"])];
    if (/size/.test(option.flags)) return [this.pick(["300KB", "1GiB", "0", "5B", "2", "", "64"])];
    if (/tasks/.test(option.flags)) return [this.pick(["piqa", "openbookqa:1", "bogus", "notes.md", ""])];
    if (/tokens|samples|steps|candidates/.test(option.flags)) return [this.pick(["0", "1", "3", "200", "-1", "x"])];
    return [this.pick(NUMBERS)];
  }

  /** Damages a file of the tree, sometimes. */
  damage(tree: string): void {
    if (!this.chance(0.35)) return;
    const files = [...witness(tree).keys()].filter((file) => !/^(benchmarks|link|full)/.test(file));
    const name = this.pick(files);
    const file = path.join(tree, name);
    const bytes = readFileSync(file);
    const at = this.random.integer(Math.max(1, bytes.length));
    const kinds: Record<string, () => Uint8Array> = {
      truncated: () => bytes.subarray(0, at),
      emptied: () => new Uint8Array(),
      lengthened: () => Buffer.concat([bytes, Buffer.from("garbage")]),
      zeroed: () => new Uint8Array(bytes.length),
      "with another beginning": () => Buffer.concat([Buffer.from([1, 2, 3, 255, 254, 0, 9, 9]), bytes.subarray(8)]),
      "flipped in its header": () =>
        bytes.map((byte, i) => (i === at % Math.min(bytes.length, 2000) ? byte ^ 0x41 : byte)),
    };
    const kind = this.pick(Object.keys(kinds));
    writeFileSync(file, kinds[kind]?.() ?? bytes);
    this.damaged = `${name} ${kind}`;
    this.isComparable = /^(model|pruned|run)\/model\.safetensors$|\.gguf$/.test(name) && !kind.startsWith("flipped");
  }
}

/** Files that a command may change: those of the run that it goes on with, and a file that it may overwrite. */
function mayChange(tree: string, args: readonly string[], out: string | undefined): Set<string> {
  const allowed = new Set<string>();
  if (out === undefined || !existsSync(path.join(tree, out))) return allowed;
  const record = path.join(tree, out, "run.json");
  if (lstatSync(path.join(tree, out)).isDirectory() && existsSync(record)) {
    allowed.add(path.join(out, "run.json"));
    const { files } = JSON.parse(readFileSync(record, "utf8")) as { files: string[] };
    for (const file of files) allowed.add(path.join(out, file));
  }
  if (args.includes("--overwrite") && out.endsWith(".gguf")) allowed.add(out);
  return allowed;
}

/** A result without what differs from run to run. */
const VOLATILE = /second|memory|^out$|^files$|^file$|cached|date|speed|identit/i;
function stable(value: unknown): unknown {
  if (Array.isArray(value)) return value.map(stable);
  if (typeof value !== "object" || value === null) return value;
  return Object.fromEntries(
    Object.entries(value).flatMap(([key, inner]) => (VOLATILE.test(key) ? [] : [[key, stable(inner)]])),
  );
}

/** What is wrong with how a command ended. */
function complaints({ status, signal, timedOut, stdout, stderr }: Outcome): string[] {
  if (timedOut) return [];
  const wrong: string[] = [];
  if (signal !== null) wrong.push(`signal ${signal}`);
  else if (status !== 0 && status !== 1 && status !== 2) wrong.push(`exit code ${status}`);
  if (/\n {4}at /.test(stderr)) wrong.push("a stack trace");
  if (status !== 0 && stdout !== "") wrong.push("output of a failure");
  if (status !== 0 && stderr.trim() === "") wrong.push("a failure without a word");
  if (/\[object Object\]|expected \w+, received|\bundefined\b|Cannot read prop/.test(stderr))
    wrong.push("a message for programmers");
  if (status === 0) {
    try {
      if (/null/.test(stdout) && /"(loss|perplexity|value)":null/.test(stdout))
        wrong.push("a result that is no number");
      JSON.parse(stdout);
    } catch {
      wrong.push("a success without JSON");
    }
  }
  return wrong;
}

/** Does a case, in a fresh tree. @returns what was wrong */
async function run(number: number): Promise<string[]> {
  const one = new Case(number);
  const tree = freshTree("tree");
  const { args, out } = one.arguments();
  one.damage(tree);
  const allowed = mayChange(tree, args, out);
  const before = witness(tree);
  if (one.killedAfter !== undefined) await coppice(tree, args, one.killedAfter);
  const outcome = await coppice(tree, args);
  const wrong = [...complaints(outcome), ...losses(before, witness(tree), allowed)];
  const undisturbed = outcome.timedOut || one.killedAfter !== undefined;
  if (!undisturbed) wrong.push(...leftovers(tree));
  if (outcome.status === 0 && one.isComparable) {
    const plain = await coppice(freshTree("whole"), args);
    if (resultOf(plain) !== resultOf(outcome)) wrong.push("another result than the plain run's");
  }
  const ending = `${args[0]} ${outcome.timedOut ? "timed out" : outcome.status}`;
  endings.set(ending, (endings.get(ending) ?? 0) + 1);
  if (wrong.length > 0 || values.case !== undefined) tell(one, args, outcome, wrong);
  return wrong;
}

function freshTree(name: string): string {
  const tree = path.join(scratch, "case", name);
  rmSync(tree, { recursive: true, force: true });
  cpSync(template, tree, { recursive: true, verbatimSymlinks: true });
  return tree;
}

function losses(before: Map<string, string>, after: Map<string, string>, allowed: Set<string>): string[] {
  return [...before].flatMap(([file, content]) =>
    allowed.has(file) || after.get(file) === content ? [] : [`${file} ${after.has(file) ? "was changed" : "was lost"}`],
  );
}

const leftovers = (tree: string): string[] =>
  [...witness(tree).keys()].filter((file) => /\.partial-|run\.lock/.test(file)).map((file) => `${file} was left`);

const resultOf = ({ status, stdout }: Outcome): string =>
  status === 0 ? JSON.stringify(stable(JSON.parse(stdout))) : `exit ${status}`;

function tell(one: Case, args: readonly string[], { status, stderr }: Outcome, wrong: readonly string[]): void {
  const lines = [
    `${wrong.length > 0 ? "BAD " : "    "}case ${one.number}: coppice ${args.map((text) => JSON.stringify(text)).join(" ")}`,
    ...(one.damaged === undefined ? [] : [one.damaged]),
    ...(one.killedAfter === undefined ? [] : [`killed after ${one.killedAfter.toFixed(1)} s, then again`]),
    `${wrong.join("; ")} (exit ${status})`,
    ...stderr.trim().slice(-600).split("\n"),
  ];
  console.log(lines.join("\n     "));
}

const endings = new Map<string, number>();
await prepare();
const end = performance.now() + 60_000 * Number(values.minutes);
let [cases, bad] = [0, 0];
try {
  if (values.case !== undefined) bad += (await run(Number(values.case))).length;
  else
    for (let number = 1_000_000 * Number(values.seed); performance.now() < end; number++, cases++)
      if ((await run(number)).length > 0) bad++;
} finally {
  rmSync(scratch, { recursive: true, force: true });
}
console.log(`${cases} cases, ${bad} bad`);
for (const [name, count] of [...endings].sort()) console.log(`  ${name}: ${count}`);
process.exitCode = bad > 0 ? 1 : 0;
