/**
 * The process that tries a GGUF file: trial.ts starts it with the file's name. It tells its parent when the file has passed; until
 * then its end, in whatever way, means that llama.cpp cannot run the file.
 */
import { getLlama, LlamaLogLevel, type Token } from "node-llama-cpp";

const [file = ""] = process.argv.slice(2);
/** Two requests at once, so that caches and states are split as a service splits them. */
const [SEQUENCES, CONTEXT, PROMPT] = [2, 64, 2];
/** Up to this size one thread is as fast: starting more costs as much as they save, and waiting for them more. */
const ONE_THREAD_BYTES = 1 << 30;

const leave = () => process.exit(1);
process.on("disconnect", leave); // nobody waits for the answer any more

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
  const context = await model.createContext({
    contextSize: CONTEXT,
    sequences: SEQUENCES,
    ...(model.size < ONE_THREAD_BYTES && { threads: 1 }),
    ignoreMemorySafetyChecks: true,
  });
  const first = model.tokens.bos ?? (0 as Token);
  for (let i = 0; i < SEQUENCES; i++) {
    const prompt = Array.from({ length: PROMPT }, () => first);
    const written = context.getSequence().evaluate(prompt, { temperature: 0, yieldEogToken: true });
    await written.next();
    await written.return();
  }
  process.send?.("passed", () => process.exit(0));
} catch (error) {
  process.stderr.write(`${error instanceof Error ? error.message : error}\n`);
  process.exitCode = 1;
  process.off("disconnect", leave); // what llama.cpp said is still on its way
  process.disconnect?.();
}
