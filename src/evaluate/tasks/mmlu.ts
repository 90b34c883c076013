import { z } from "zod";
import { choices, multipleChoice } from "../kinds.js";
import { trim } from "../python-text.js";
import type { Task } from "../task.js";

const row = z.object({
  question: z.string(),
  choices: z.array(z.string()).length(4),
  answer: z.number().int().min(0).max(3),
});

const LETTERS = ["A", "B", "C", "D"];

/** The 57 subjects, in the harness's groups. */
export const MMLU_SUBJECTS = {
  stem: [
    "abstract_algebra",
    "anatomy",
    "astronomy",
    "college_biology",
    "college_chemistry",
    "college_computer_science",
    "college_mathematics",
    "college_physics",
    "computer_security",
    "conceptual_physics",
    "electrical_engineering",
    "elementary_mathematics",
    "high_school_biology",
    "high_school_chemistry",
    "high_school_computer_science",
    "high_school_mathematics",
    "high_school_physics",
    "high_school_statistics",
    "machine_learning",
  ],
  other: [
    "business_ethics",
    "clinical_knowledge",
    "college_medicine",
    "global_facts",
    "human_aging",
    "management",
    "marketing",
    "medical_genetics",
    "miscellaneous",
    "nutrition",
    "professional_accounting",
    "professional_medicine",
    "virology",
  ],
  social_sciences: [
    "econometrics",
    "high_school_geography",
    "high_school_government_and_politics",
    "high_school_macroeconomics",
    "high_school_microeconomics",
    "high_school_psychology",
    "human_sexuality",
    "professional_psychology",
    "public_relations",
    "security_studies",
    "sociology",
    "us_foreign_policy",
  ],
  humanities: [
    "formal_logic",
    "high_school_european_history",
    "high_school_us_history",
    "high_school_world_history",
    "international_law",
    "jurisprudence",
    "logical_fallacies",
    "moral_disputes",
    "moral_scenarios",
    "philosophy",
    "prehistory",
    "professional_law",
    "world_religions",
  ],
} as const;

/** Massive Multitask Language Understanding (Hendrycks et al. 2020): one subject. */
export const mmluSubject = (subject: string): Task =>
  multipleChoice({
    name: `mmlu_${subject}`,
    version: 1,
    schema: row,
    dataset: { repo: "cais/mmlu", config: subject },
    splits: { test: "test", fewShot: "dev" },
    fewShot: {
      count: 5,
      sampler: "first",
      description: `The following are multiple choice questions (with answers) about ${subject.replaceAll("_", " ")}.\n\n`,
    },
    options: (r) => {
      const listed = r.choices.map((choice, i) => `${LETTERS[i]}. ${choice}\n`);
      return choices(`${trim(r.question)}\n${listed.join("")}Answer:`, LETTERS);
    },
    right: ({ answer }) => [answer],
    metrics: ["acc"],
  });
