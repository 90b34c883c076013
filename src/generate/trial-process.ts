/**
 * The process that tries a GGUF file, started by trial.ts with the file's name. It sends its parent a message when the file has
 * passed; if it ends before that, llama.cpp cannot run the file.
 */
import { getLlama, LlamaLogLevel, type Token } from "node-llama-cpp";

const [file = ""] = process.argv.slice(2);
/** Two sequences at once, so that caches and states are split as a server splits them. */
const [SEQUENCES, CONTEXT, PROMPT] = [2, 64, 2];
/** Below this size one thread is at least as fast: starting and joining more costs as much as they save. */
const ONE_THREAD_BYTES = 1 << 30;

const leave = () => process.exit(1);
process.on("disconnect", leave); // the parent is gone

try {
  const llama = await getLlama({
    gpu: false,
    build: "never",
    progressLogs: false,
    skipDownload: true,
    logLevel: LlamaLogLevel.error,
    logger: (_, message) => process.stderr.write(`${message.trim()}\n`),
  });
  const model = await llama.loadModel({ modelPath: file, ignoreMemorySafetyChecks: true });
  const options = { contextSize: CONTEXT, sequences: SEQUENCES, ignoreMemorySafetyChecks: true };
  const context = await model.createContext(model.size < ONE_THREAD_BYTES ? { ...options, threads: 1 } : options);
  const first = model.tokens.bos ?? (0 as Token);
  for (let i = 0; i < SEQUENCES; i++) {
    const prompt = Array.from({ length: PROMPT }, () => first);
    const tokens = context.getSequence().evaluate(prompt, { temperature: 0, yieldEogToken: true });
    await tokens.next();
    await tokens.return();
  }
  process.send?.("passed", () => process.exit(0));
} catch (error) {
  process.stderr.write(`${error instanceof Error ? error.message : error}\n`);
  process.exitCode = 1;
  process.off("disconnect", leave); // let llama.cpp's output be read first
  process.disconnect?.();
}
