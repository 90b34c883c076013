import { loadTaskFile, SUITES, TASK_GROUPS, TASKS } from "../evaluate/index.js";
import { UsageError } from "../system/errors.js";
import { didYouMean } from "../system/suggest.js";
import type { PlannedTask } from "./evaluation.js";

/** Names of all suites, groups and tasks that are built in. */
export const TASK_NAMES: readonly string[] = [
  ...new Set([...Object.keys(SUITES), ...TASK_GROUPS.map(({ name }) => name), ...TASKS.map(({ name }) => name)]),
];

/** Tasks by the names of tasks, groups, suites and files, each once. @throws UsageError for a name that means nothing */
export async function plannedTasks(names: readonly string[], fewShot: number | undefined): Promise<PlannedTask[]> {
  const planned: Omit<PlannedTask, "label">[] = [];
  for (const name of names) planned.push(...(await tasksOf(name, fewShot)));
  const byLabel = new Map(
    planned.map((one) => {
      const { name } = one.task;
      const shots = (other: typeof one) => other.fewShot ?? other.task.fewShot.count;
      const twice = planned.some((other) => other.task.name === name && shots(other) !== shots(one));
      const label = twice ? `${name}_${shots(one)}shot` : name;
      return [label, { ...one, label }] as const;
    }),
  );
  return [...byLabel.values()];
}

/** The name of a task and the number of its examples: `NAME:SHOTS`. */
function nameAndShots(
  given: string,
  fewShot?: number,
): { readonly name: string; readonly fewShot?: number | undefined } {
  const [, name = given, shots] = /^(.*?)(?::(\d+))?$/.exec(given) ?? [];
  const own = shots === undefined ? fewShot : Number(shots);
  return { name, fewShot: own };
}

/** Whether a name means a task, group or suite that is brought along: no file is looked at. */
export function isBenchmark(given: string): boolean {
  const { name } = nameAndShots(given);
  return Object.hasOwn(SUITES, name) || [...TASK_GROUPS, ...TASKS].some((known) => known.name === name);
}

/** @throws UsageError for a name that means nothing, listing those that do */
async function tasksOf(given: string, fewShot: number | undefined): Promise<Omit<PlannedTask, "label">[]> {
  const { name, fewShot: own } = nameAndShots(given, fewShot);
  const suite = Object.hasOwn(SUITES, name) ? SUITES[name] : undefined;
  if (suite !== undefined)
    return (await Promise.all(suite.map((entry) => tasksOf(entry.task, own ?? entry.fewShot)))).flat();
  const group = TASK_GROUPS.find((known) => known.name === name);
  if (group !== undefined) return (await Promise.all(group.members.map((member) => tasksOf(member, own)))).flat();
  const task = TASKS.find((known) => known.name === name) ?? (await loadTaskFile(name));
  if (task !== undefined) return [{ task, fewShot: own }];
  const known = TASK_NAMES.filter((one) => !/^mmlu_/.test(one));
  throw new UsageError(
    `there is no task ${name}; known are ${known.join(", ")}, mmlu_SUBJECT, and task files (.json, .js, .ts).${didYouMean(name, TASK_NAMES)}`,
  );
}
