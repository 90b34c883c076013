import { fork } from "node:child_process";
import path from "node:path";
import { CoppiceError, FormatError } from "../system/errors.js";
import { fileStamp } from "../system/file-stamp.js";
import { packageRoot } from "../system/package-root.js";

/** The built file, also when the program runs from its sources, because Node runs it directly. */
const CHILD = path.join(packageRoot, "dist/generate/trial-process.js");
/** Loading takes as long as reading the file: minutes for the largest ones on a slow disk. */
const TIMEOUT_SECONDS = 1800;
/** How much of llama.cpp's output is kept, and how many lines of it go into an error. */
const [OUTPUT_LENGTH, ERROR_LINES] = [8192, 3];

const UNINFORMATIVE = /failed to load model$/i;

const trials = new Map<string, Promise<void>>();

/**
 * Loads a GGUF file in a separate process and computes a few tokens, so that a file that makes llama.cpp end the process is an error
 * here. A file is not tried again until it changes.
 * @param files all files of the model
 * @throws FormatError with the last lines of llama.cpp's output
 */
export function tryInLlamaCpp(file: string, files: readonly string[]): Promise<void> {
  const identity = JSON.stringify(files.map(fileStamp));
  const known = trials.get(identity);
  if (known !== undefined) return known;
  const trial = runTrial(path.resolve(file));
  trials.set(identity, trial);
  trial.catch((error: unknown) => {
    if (!(error instanceof FormatError)) trials.delete(identity); // the file may be fine
  });
  return trial;
}

function runTrial(file: string): Promise<void> {
  return new Promise((resolve, reject) => {
    const child = fork(CHILD, [file], {
      env: { ...process.env, GGML_NO_BACKTRACE: "1" }, // a backtrace would start a debugger
      execArgv: [],
      stdio: ["ignore", "ignore", "pipe", "ipc"],
    });
    let output = "";
    let hasPassed = false;
    let hasTimedOut = false;
    const timer = setTimeout(() => {
      hasTimedOut = true;
      child.kill("SIGKILL");
    }, 1000 * TIMEOUT_SECONDS);
    child.stderr?.setEncoding("utf8").on("data", (text: string) => {
      output = (output + text).slice(-OUTPUT_LENGTH);
    });
    child.on("message", () => {
      hasPassed = true;
    });
    child.on("error", (error) => reject(new CoppiceError(`llama.cpp cannot be started: ${error.message}`)));
    child.on("close", (code, signal) => {
      clearTimeout(timer);
      if (hasPassed) resolve();
      else if (hasTimedOut) reject(new CoppiceError(`${file}: llama.cpp did not load it within ${TIMEOUT_SECONDS} s`));
      else if (signal === "SIGINT" || signal === "SIGTERM")
        reject(new CoppiceError("stopped while llama.cpp was trying the model"));
      else if (signal === "SIGKILL")
        reject(
          new CoppiceError(
            `${file}: the system killed llama.cpp while it was loading this, perhaps for lack of memory`,
          ),
        );
      else
        reject(new FormatError(`llama.cpp cannot run it (${lastLines(output) || `it ended with ${signal ?? code}`})`));
    });
  });
}

/** The lines that may say why, without their places in llama.cpp's sources. */
function lastLines(output: string): string {
  const lines = output
    .split("\n")
    .map((line) => line.replace(/^\S*\/(?=[^/\s]+\.(c|cpp|h|cu|m):\d+)/, "").trim())
    .filter((line) => line !== "" && !UNINFORMATIVE.test(line));
  return [...new Set(lines)].slice(-ERROR_LINES).join("; ");
}
