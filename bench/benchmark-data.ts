/**
 * Makes a directory of benchmark data in the hub's schema, DATASET/CONFIG/SPLIT.jsonl, from the original distributions beside
 * the project and from small samples of those that are not there. For `coppice evaluate --data`, bench/peers/harness.py and tests.
 *
 *   npx tsx bench/benchmark-data.ts DIRECTORY
 */
import { execFileSync } from "node:child_process";
import { cpSync, mkdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import path from "node:path";
import { pathToFileURL } from "node:url";
import { gunzipSync } from "node:zlib";
import { parse } from "csv-parse/sync";

const project = path.resolve(import.meta.dirname, "..");
const originals = path.join(project, "../shared/data/benchmarks");
const samples = path.join(project, "test/fixtures/benchmarks");

const unpacked = (name: string): string => gunzipSync(readFileSync(path.join(originals, name))).toString("utf8");
const jsonLines = <T>(name: string): T[] =>
  unpacked(name)
    .split("\n")
    .filter((line) => line !== "")
    .map((line) => JSON.parse(line) as T);
const csv = (text: string): Record<string, string>[] => parse(text, { columns: true, bom: true });

/** Writes the whole directory. */
export function writeBenchmarkData(directory: string): void {
  const write = (dataset: string, config: string, split: string, rows: readonly unknown[]) => {
    const folder = path.join(directory, dataset, config);
    mkdirSync(folder, { recursive: true });
    writeFileSync(path.join(folder, `${split}.jsonl`), rows.map((row) => `${JSON.stringify(row)}\n`).join(""));
  };
  cpSync(samples, directory, { recursive: true });
  write("openai/openai_humaneval", "default", "test", jsonLines("HumanEval.jsonl.gz"));
  const mbpp = jsonLines<{ task_id: number }>("mbpp.jsonl.gz");
  const between = (from: number, to: number) => mbpp.filter(({ task_id: id }) => id >= from && id <= to);
  write("google-research-datasets/mbpp", "full", "prompt", between(1, 10));
  write("google-research-datasets/mbpp", "full", "test", between(11, 510));
  for (const split of ["train", "test"]) write("openai/gsm8k", "main", split, jsonLines(`gsm8k-${split}.jsonl.gz`));
  write("truthfulqa/truthful_qa", "multiple_choice", "validation", csv(unpacked("TruthfulQA.csv.gz")).map(truthfulRow));
  const archive = path.join(originals, "mmlu.tar.gz");
  const members = execFileSync("tar", ["-tzf", archive], { encoding: "utf8" });
  const extracted = path.join(directory, ".mmlu");
  mkdirSync(extracted, { recursive: true });
  execFileSync("tar", ["-xzf", archive, "-C", extracted]);
  for (const [member, split = "", subject = ""] of members.matchAll(/mmlu\/(dev|test)\/(\w+?)_\1\.csv/g)) {
    const rows = csv(readFileSync(path.join(extracted, member), "utf8"));
    const of = ({ question, choice0, choice1, choice2, choice3, answer }: Record<string, string>) => ({
      question,
      subject,
      choices: [choice0, choice1, choice2, choice3],
      answer: Number(answer),
    });
    write("cais/mmlu", subject, split, rows.map(of));
  }
  rmSync(extracted, { recursive: true });
}

/** The original lists answers that are true and answers that are not; the multiple-choice form puts the true ones first. */
function truthfulRow(row: Record<string, string>) {
  const list = (name: string) =>
    (row[name] ?? "")
      .split(";")
      .map((answer) => answer.trim())
      .filter((answer) => answer !== "");
  const [best, correct, incorrect] = [row["Best Answer"] ?? "", list("Correct Answers"), list("Incorrect Answers")];
  const options = (right: readonly string[]) => ({
    choices: [...right, ...incorrect],
    labels: [...right.map(() => 1), ...incorrect.map(() => 0)],
  });
  return { question: row.Question, mc1_targets: options([best.trim()]), mc2_targets: options(correct) };
}

if (import.meta.url === pathToFileURL(process.argv[1] ?? "").href) writeBenchmarkData(process.argv[2] ?? "benchmarks");
