import path from "node:path";
import { loadTaskFile, SUITES, TASK_GROUPS, TASKS } from "../evaluate/index.js";
import { UsageError } from "../system/errors.js";
import { didYouMean } from "../system/suggest.js";
import type { PlannedTask } from "./evaluation.js";

/** The names of all built-in suites, groups and tasks. */
export const TASK_NAMES: readonly string[] = [
  ...new Set([...Object.keys(SUITES), ...TASK_GROUPS.map(({ name }) => name), ...TASKS.map(({ name }) => name)]),
];

/** The tasks that names of tasks, groups, suites and files stand for, each once. @throws UsageError for an unknown name */
export async function plannedTasks(names: readonly string[], fewShot: number | undefined): Promise<PlannedTask[]> {
  const planned: FoundTask[] = [];
  for (const name of names) planned.push(...(await tasksOf(name, fewShot)));
  const byLabel = new Map<string, PlannedTask>();
  for (const { place, ...each } of planned) {
    const { name } = each.task;
    const another = planned.find((other) => other.task.name === name && other.place !== place);
    if (another !== undefined)
      throw new UsageError(
        `${place ?? "a task of ours"} and ${another.place ?? "a task of ours"} are both named ${name}: name one otherwise`,
      );
    const shots = ({ fewShot: count, task }: Omit<PlannedTask, "label">) => count ?? task.fewShot.count;
    const isRepeated = planned.some((other) => other.task.name === name && shots(other) !== shots(each));
    const label = isRepeated ? `${name}_${shots(each)}shot` : name;
    byLabel.set(label, { ...each, label });
  }
  return [...byLabel.values()];
}

/** A task, and the file that it is in; undefined for those that are built in. */
type FoundTask = Omit<PlannedTask, "label"> & { readonly place: string | undefined };

/** Splits `NAME:SHOTS` into a name and its number of examples. */
function splitShots(text: string): { readonly name: string; readonly shots: number | undefined } {
  const [, name = text, shots] = /^(.*?)(?::(\d+))?$/.exec(text) ?? [];
  return { name, shots: shots === undefined ? undefined : Number(shots) };
}

/**
 * Whether a name is that of a built-in task, group or suite.
 * @example
 * ```ts
 * import { isBenchmark } from "coppice";
 *
 * console.log(isBenchmark("mmlu"), isBenchmark("hellaswag:5"), isBenchmark("./capitals.json")); // true true false
 * ```
 */
export function isBenchmark(text: string): boolean {
  const { name } = splitShots(text);
  return Object.hasOwn(SUITES, name) || [...TASK_GROUPS, ...TASKS].some((known) => known.name === name);
}

/** @throws UsageError for an unknown name, listing those that are known */
async function tasksOf(text: string, defaultShots: number | undefined): Promise<FoundTask[]> {
  const { name, shots } = splitShots(text);
  const fewShot = shots ?? defaultShots;
  const suite = Object.hasOwn(SUITES, name) ? SUITES[name] : undefined;
  if (suite !== undefined)
    return (await Promise.all(suite.map((entry) => tasksOf(entry.task, fewShot ?? entry.fewShot)))).flat();
  const group = TASK_GROUPS.find((known) => known.name === name);
  if (group !== undefined) return (await Promise.all(group.members.map((member) => tasksOf(member, fewShot)))).flat();
  const builtIn = TASKS.find((known) => known.name === name);
  if (builtIn?.fewShot.none === true) {
    if (shots !== undefined && shots > 0)
      throw new UsageError(`${name} has no worked examples: leave out ":${shots}" (the harness ignores it)`);
    return [{ task: builtIn, fewShot: 0, place: undefined }];
  }
  if (builtIn !== undefined) return [{ task: builtIn, fewShot, place: undefined }];
  const task = await loadTaskFile(name);
  if (task !== undefined) return [{ task, fewShot, place: path.resolve(name) }];
  const known = TASK_NAMES.filter((each) => !each.startsWith("mmlu_"));
  throw new UsageError(
    `there is no task ${name}; known are ${known.join(", ")}, mmlu_SUBJECT, and task files (.json, .js, .ts).${didYouMean(name, TASK_NAMES)}`,
  );
}
