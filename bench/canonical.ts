/**
 * Runs the canonical solutions of HumanEval and of MBPP's test split in the sandbox, and lists those that do not pass.
 *
 *   npx tsx bench/canonical.ts DATA     (npx tsx bench/benchmark-data.ts DATA makes it)
 */
import { Datasets, PythonSandbox, TASKS, type Task } from "../src/evaluate/index.js";

const [, , directory = ""] = process.argv;
const datasets = new Datasets({ directory });
const sandbox = new PythonSandbox();

/** What a model would have to write. */
const solutions: Record<string, (row: Record<string, string>) => string> = {
  humaneval: ({ canonical_solution: solution = "" }) => solution,
  mbpp: ({ code = "" }) => code,
};

async function check(task: Task): Promise<void> {
  const { rows } = await datasets.split(task.dataset, "test");
  const started = performance.now();
  const failed: string[] = [];
  await Promise.all(
    rows.map(async ({ record }) => {
      const row = record as Record<string, string>;
      let reason = "";
      const passes = async (program: string) => {
        const outcome = await sandbox.run(program);
        reason = outcome.reason;
        return outcome.passed;
      };
      const scores = await task.read(record).score([solutions[task.name]?.(row) ?? ""], { passes });
      if (Object.values(scores)[0] !== 1) failed.push(`  ${row.task_id}: ${reason.trim().split("\n").at(-1)}`);
    }),
  );
  const seconds = (performance.now() - started) / 1000;
  console.log(`${task.name}: ${rows.length - failed.length} of ${rows.length} pass (${seconds.toFixed(0)} s)`);
  for (const line of failed.sort()) console.log(line);
}

for (const task of TASKS) if (solutions[task.name] !== undefined) await check(task);
sandbox.close();
