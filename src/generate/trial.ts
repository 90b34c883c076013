import { fork } from "node:child_process";
import { statSync } from "node:fs";
import path from "node:path";
import { CoppiceError, FormatError } from "../system/errors.js";
import { packageRoot } from "../system/package-root.js";

/** As built, also where the program runs from its sources: Node starts it by itself. */
const CHILD = path.join(packageRoot, "dist/generate/trial-process.js");
/** Loading is bounded by reading the file: the largest there are take minutes from a slow disk. */
const SECONDS = 1800;
/** Of what llama.cpp says, the last lines that may tell why. */
const [TOLD_BYTES, TOLD_LINES] = [8192, 3];

const SAYS_NOTHING = /failed to load model$/i;

const tried = new Map<string, Promise<void>>();

/**
 * Loads a GGUF file in a process of its own and computes a few tokens, so that what makes llama.cpp end the process is an error
 * here. A file that passed, or did not, is not tried again while it stays as it is.
 * @param files all files of the model
 * @throws FormatError with llama.cpp's last words
 */
export function tryInLlamaCpp(file: string, files: readonly string[]): Promise<void> {
  const identity = JSON.stringify(
    files.map((part) => {
      const { size, mtimeMs, ctimeMs, ino } = statSync(part);
      return [path.resolve(part), size, mtimeMs, ctimeMs, ino];
    }),
  );
  const known = tried.get(identity);
  if (known !== undefined) return known;
  const trial = runTrial(path.resolve(file));
  tried.set(identity, trial);
  trial.catch((error: unknown) => {
    if (!(error instanceof FormatError)) tried.delete(identity); // it says nothing of the file
  });
  return trial;
}

function runTrial(file: string): Promise<void> {
  return new Promise((resolve, reject) => {
    const child = fork(CHILD, [file], {
      env: { ...process.env, GGML_NO_BACKTRACE: "1" }, // a debugger would be started for it
      execArgv: [],
      stdio: ["ignore", "ignore", "pipe", "ipc"],
    });
    let told = "";
    let passed = false;
    let late = false;
    const timer = setTimeout(() => {
      late = true;
      child.kill("SIGKILL");
    }, 1000 * SECONDS);
    child.stderr?.setEncoding("utf8").on("data", (text: string) => {
      told = (told + text).slice(-TOLD_BYTES);
    });
    child.on("message", () => {
      passed = true;
    });
    child.on("error", (error) => reject(new CoppiceError(`llama.cpp cannot be tried: ${error.message}`)));
    child.on("close", (code, signal) => {
      clearTimeout(timer);
      if (passed) resolve();
      else if (late) reject(new CoppiceError(`${file}: llama.cpp did not load it within ${SECONDS} s`));
      else if (signal === "SIGINT" || signal === "SIGTERM")
        reject(new CoppiceError("stopped while llama.cpp tried the model"));
      else if (signal === "SIGKILL")
        reject(
          new CoppiceError(`${file}: the system ended llama.cpp while it loaded this, perhaps for want of memory`),
        );
      else reject(new FormatError(`llama.cpp cannot run it (${lastWords(told) || `it ended with ${signal ?? code}`})`));
    });
  });
}

/** The lines that say why, without the places in llama.cpp's sources. */
function lastWords(told: string): string {
  const lines = told
    .split("\n")
    .map((line) => line.replace(/^\S*\/(?=[^/\s]+\.(c|cpp|h|cu|m):\d+)/, "").trim())
    .filter((line) => line !== "" && !SAYS_NOTHING.test(line));
  return [...new Set(lines)].slice(-TOLD_LINES).join("; ");
}
