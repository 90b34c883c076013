import type { Invocation, OptionSource } from "./invocation.js";

/** A setting of a run. */
export interface ExplainedSetting {
  readonly name: string;
  readonly value: unknown;
  /** Undefined where the run does not record how it was started. */
  readonly source: OptionSource | "default" | undefined;
}

/** Settings whose option on the command line has another name. */
const OPTION_OF: Readonly<Record<string, string>> = {
  saveEverySteps: "saveEvery",
  validateEverySteps: "validateEvery",
  computeType: "compute",
  bitsPerWeight: "bits",
  depthMethod: "depth",
  maxCandidates: "candidates",
  calibrationSamples: "samples",
  divergence: "loss",
  cache: "teacherCache",
};

/** These say what a run is about, and are explained by themselves. */
const NOT_SETTINGS = new Set(["command", "inputs"]);
/** Settings that are arguments rather than options. */
const ARGUMENTS = new Set(["models"]);
/** Groups of settings, whose members are listed instead. */
const GROUPS = new Set(["settings", "space", "distillation", "teacherOptions"]);

const sourceOfRest = (name: string) => (ARGUMENTS.has(name) ? "command line" : "default");

/** The settings in a run's configuration, and where each comes from. */
export function settingsOf(
  configuration: Readonly<Record<string, unknown>>,
  invocation: Invocation | undefined,
): ExplainedSetting[] {
  const flat = Object.entries(configuration).flatMap(([name, value]) =>
    GROUPS.has(name) ? Object.entries(Object(value) as Record<string, unknown>) : [[name, value] as const],
  );
  return flat
    .filter(([name, value]) => !NOT_SETTINGS.has(name) && value !== undefined)
    .map(([name, value]) => ({
      name,
      value,
      source: invocation && (invocation.sources[OPTION_OF[name] ?? name] ?? sourceOfRest(name)),
    }));
}
