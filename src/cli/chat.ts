import { createInterface, type Interface } from "node:readline/promises";
import type { Chat } from "../generate/index.js";
import type { JobOptions } from "../jobs/index.js";
import { UsageError } from "../system/errors.js";
import { action } from "./action.js";
import { command } from "./command.js";
import { engineOptions, type SamplingFlags, sampling, samplingOptions } from "./generate.js";
import { adapters, common, defined, MODEL } from "./options.js";

interface Flags extends SamplingFlags {
  readonly system?: string | undefined;
}

/** An answer's tokens at most, by default: models that never end their turn would answer for ever. */
const ANSWER_TOKENS = 2048;

/** A question and its answer. */
interface Turn {
  readonly user: string;
  readonly model: string;
}

const HELP = "/reset forgets the conversation, /exit ends it (or Ctrl-D); Ctrl-C stops an answer";

export const chatCommand = command("chat", "Talk to a model in the terminal")
  .with(sampling, common, adapters)
  .argument("<model>", MODEL)
  .option("--system <text>", "instructions for the model, before the conversation")
  .examples('coppice chat ./model --system "You are a patient teacher."')
  .action(
    action(async ({ job, print }, flags: Flags, model: string) => {
      const { openEngine } = await import("../jobs/generate.js");
      const engine = await openEngine({ ...job, ...engineOptions(flags), model });
      const terminal = process.stdin.isTTY === true;
      const lines = terminal
        ? createInterface({ input: process.stdin, output: process.stderr, prompt: "> " })
        : createInterface({ input: process.stdin });
      try {
        if (terminal) process.stderr.write(`${HELP}\n`);
        const turns = await converse(engine.chat(flags.system), lines, job, flags);
        if (flags.json === true) print(turns, () => "");
      } finally {
        lines.close();
        await engine.dispose();
      }
    }),
  );

/** Answers line by line, until the input ends. @returns all turns */
async function converse(chat: Chat, lines: Interface, job: JobOptions, flags: Flags): Promise<Turn[]> {
  const turns: Turn[] = [];
  let answer: AbortController | undefined;
  // in a terminal readline gets Ctrl-C: it stops the answer, or ends the conversation where there is none
  lines.on("SIGINT", () => (answer === undefined ? lines.close() : answer.abort()));
  job.signal?.addEventListener("abort", () => lines.close());
  const onText = flags.json === true ? undefined : (text: string) => process.stdout.write(text);
  let closed = false; // by the end of piped input, which newer versions of Node do not prompt after
  lines.once("close", () => {
    closed = true;
  });
  lines.prompt();
  for await (const line of lines) {
    if (line.trim() === "/exit") break;
    if (line.trim() === "/reset") chat.reset();
    else if (line.trim() !== "") {
      answer = new AbortController();
      const signal = job.signal ? AbortSignal.any([job.signal, answer.signal]) : answer.signal;
      try {
        const { text } = await chat.say(line, {
          maxTokens: ANSWER_TOKENS,
          ...defined(samplingOptions(flags)),
          signal,
          onText,
        });
        turns.push({ user: line, model: text });
        onText?.("\n");
      } catch (error) {
        // what was typed can be typed again; a conversation cannot
        if (!(error instanceof UsageError && process.stdin.isTTY)) throw error;
        process.stderr.write(`${error.message}\n`);
      }
      answer = undefined;
    }
    if (!closed) lines.prompt();
  }
  return turns;
}
