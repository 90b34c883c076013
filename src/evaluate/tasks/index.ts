import type { Task } from "../task.js";
import { arcChallenge, arcEasy } from "./arc.js";
import { gsm8k } from "./gsm8k.js";
import { hellaswag } from "./hellaswag.js";
import { humaneval } from "./humaneval.js";
import { lambadaOpenai } from "./lambada.js";
import { mbpp } from "./mbpp.js";
import { MMLU_SUBJECTS, mmluSubject } from "./mmlu.js";
import { openbookqa } from "./openbookqa.js";
import { piqa } from "./piqa.js";
import { truthfulqaMc1, truthfulqaMc2 } from "./truthfulqa.js";
import { wikitext } from "./wikitext.js";
import { winogrande } from "./winogrande.js";
import { xlsumEnglish } from "./xlsum.js";

/** Tasks with a common score: their mean, weighted by their numbers of documents. */
export interface TaskGroup {
  readonly name: string;
  readonly version: number;
  /** Names of tasks and groups. */
  readonly members: readonly string[];
}

const subjects = Object.entries(MMLU_SUBJECTS);

/** All benchmarks, a file each. */
export const TASKS: readonly Task[] = [
  winogrande,
  arcChallenge,
  hellaswag,
  gsm8k,
  truthfulqaMc2,
  truthfulqaMc1,
  xlsumEnglish,
  mbpp,
  humaneval,
  wikitext,
  arcEasy,
  piqa,
  openbookqa,
  lambadaOpenai,
  ...subjects.flatMap(([, names]) => names.map(mmluSubject)),
];

export const TASK_GROUPS: readonly TaskGroup[] = [
  { name: "mmlu", version: 2, members: subjects.map(([group]) => `mmlu_${group}`) },
  ...subjects.map(([group, names]) => ({
    name: `mmlu_${group}`,
    version: 2,
    members: names.map((name) => `mmlu_${name}`),
  })),
];

/** A task with its number of worked examples. */
export interface SuiteEntry {
  readonly task: string;
  readonly fewShot: number;
}

/** Several benchmarks under one name. */
export const SUITES: Readonly<Record<string, readonly SuiteEntry[]>> = {
  /** The columns of arXiv 2408.11796, table 1. */
  minitron: [
    { task: "winogrande", fewShot: 5 },
    { task: "arc_challenge", fewShot: 25 },
    { task: "mmlu", fewShot: 5 },
    { task: "hellaswag", fewShot: 10 },
    { task: "gsm8k", fewShot: 5 },
    { task: "truthfulqa_mc2", fewShot: 0 },
    { task: "xlsum_english", fewShot: 3 },
    { task: "mbpp", fewShot: 0 },
    { task: "humaneval", fewShot: 0 },
  ],
};

/** The tasks of a group, including those of its subgroups. */
export const tasksOfGroup = (groups: readonly TaskGroup[], name: string): readonly string[] =>
  groups.find((group) => group.name === name)?.members.flatMap((member) => tasksOfGroup(groups, member)) ?? [name];
