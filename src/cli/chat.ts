import { createInterface } from "node:readline/promises";
import { Command } from "commander";
import { action, example } from "./command.js";
import { addSampling, engineOptions, type SamplingFlags, samplingOptions } from "./generate.js";
import { addCommon, MODEL } from "./options.js";

interface Flags extends SamplingFlags {
  readonly system?: string | undefined;
}

const HELP = "/reset forgets the conversation, /exit ends it (or Ctrl-D); Ctrl-C stops an answer";

export const chatCommand = example(
  addCommon(addSampling(new Command("chat").description("Talk to a model in the terminal")))
    .argument("<model>", MODEL)
    .option("--system <text>", "what the model is told before the conversation")
    .action(
      action(async ({ job, print }, flags: Flags, model: string) => {
        const { openEngine } = await import("../jobs/generate.js");
        const engine = await openEngine({ ...job, ...engineOptions(flags), model });
        const terminal = process.stdin.isTTY === true;
        const lines = createInterface({
          input: process.stdin,
          ...(terminal && { output: process.stderr, prompt: "> " }),
        });
        const turns: { readonly user: string; readonly model: string }[] = [];
        let answer: AbortController | undefined;
        // in a terminal readline gets Ctrl-C: it stops the answer, or ends the conversation where there is none
        lines.on("SIGINT", () => (answer === undefined ? lines.close() : answer.abort()));
        job.signal?.addEventListener("abort", () => lines.close());
        try {
          const chat = engine.chat(flags.system);
          if (terminal) process.stderr.write(`${HELP}\n`);
          lines.prompt();
          for await (const line of lines) {
            if (line.trim() === "/exit") break;
            if (line.trim() === "/reset") chat.reset();
            else if (line.trim() !== "") {
              answer = new AbortController();
              const { text } = await chat.say(line, {
                ...samplingOptions(flags),
                signal: job.signal ? AbortSignal.any([job.signal, answer.signal]) : answer.signal,
                ...(flags.json !== true && { onText: (piece: string) => void process.stdout.write(piece) }),
              });
              answer = undefined;
              turns.push({ user: line, model: text });
              if (flags.json !== true) process.stdout.write("\n");
            }
            lines.prompt();
          }
          if (flags.json === true) print(turns, () => "");
        } finally {
          lines.close();
          await engine.dispose();
        }
      }),
    ),
  'coppice chat ./model --system "You are a patient teacher."',
);
