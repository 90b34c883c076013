import { homedir } from "node:os";
import { packageVersion } from "../system/package-version.js";
import type { Diagnosis } from "./diagnosis.js";

/** Variables that are ours or change what we do. `COPPICE_*` are all listed. */
const RELEVANT =
  /^(COPPICE_.*|HF_(HOME|HUB_CACHE|HUB_OFFLINE|ENDPOINT|TOKEN)|DATABASE_URL|OPENAI_API_KEY|AWS_(ENDPOINT_URL(_S3)?|REGION|DEFAULT_REGION|ACCESS_KEY_ID|SECRET_ACCESS_KEY)|XDG_DATA_HOME|CC|UV_THREADPOOL_SIZE|NO_COLOR|FORCE_COLOR|GGML_.*|CUDA_VISIBLE_DEVICES|NODE_OPTIONS|OMP_NUM_THREADS)$/;

/** Variables whose values let others in. */
const SECRET = /SECRET|TOKEN|PASSWORD|API_?KEY|ACCESS_KEY|DATABASE|CREDENTIAL/;

/** What a bug report needs: versions, hardware, what is in use, our environment variables. No data, no secrets. */
export interface BugReport {
  readonly coppice: string;
  readonly createdAt: string;
  readonly versions: NodeJS.ProcessVersions;
  /** How Node was installed and started, as far as it matters to native code. */
  readonly system: Readonly<Record<string, unknown>>;
  readonly diagnosis: Diagnosis;
  readonly environment: Readonly<Record<string, string>>;
}

/** Collects a bug report. */
export function bugReport(diagnosis: Diagnosis, environment: NodeJS.ProcessEnv = process.env): BugReport {
  const { header } = process.report.getReport() as { readonly header?: Readonly<Record<string, unknown>> };
  const { glibcVersionRuntime, osName, osRelease, osVersion, osMachine } = header ?? {};
  const report: BugReport = {
    coppice: packageVersion(),
    createdAt: new Date().toISOString(),
    versions: process.versions,
    system: { glibcVersionRuntime, osName, osRelease, osVersion, osMachine, execArgv: process.execArgv },
    diagnosis,
    environment: relevantVariables(environment),
  };
  return withoutHome(report, homedir());
}

function relevantVariables(environment: NodeJS.ProcessEnv): Record<string, string> {
  const names = Object.keys(environment).filter((name) => RELEVANT.test(name));
  return Object.fromEntries(
    names
      .sort()
      .map((name) => [name, SECRET.test(name) ? "(set, not shown)" : withoutPassword(environment[name] ?? "")]),
  );
}

/** An address without the name and password that it may have. */
const withoutPassword = (value: string): string => value.replace(/(\w+:\/\/)[^/@\s]*@/g, "$1(not shown)@");

/** The same value with `~` for the user's home in every text. */
function withoutHome<T>(value: T, home: string): T {
  if (home.length < 2) return value; // a container without a home has /
  const replaced = (_: string, one: unknown) => (typeof one === "string" ? one.replaceAll(home, "~") : one);
  return JSON.parse(JSON.stringify(value, replaced)) as T;
}
