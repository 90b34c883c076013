/**
 * Compresses a model from a program: prune, distill, quantize, and write a sentence with the result.
 *
 *     npx tsx examples/compress.ts [MODEL [OUT]]
 */
import { rmSync } from "node:fs";
import { fileURLToPath } from "node:url";
import { compress, generate } from "coppice";

const here = (name: string) => fileURLToPath(new URL(name, import.meta.url));
const [model = here("tiny-teacher"), out = "compressed"] = process.argv.slice(2);
rmSync(out, { recursive: true, force: true }); // without this line a second run would go on where the first one ended

const { teacher, pruned, student, gguf } = await compress({
  model,
  out,
  target: "0.67x", // two thirds of the parameters; also "8.4B", "4GiB", or a device such as "phone-8gb"
  data: [here("corpus/stories.txt.gz")], // what the student learns from
  validation: [here("corpus/held-out.txt")], // what it is measured on; 2 % of the data where none is given
  settings: { tokens: 30_000, sequenceLength: 64, batchSize: 64 }, // a real model wants a hundred million tokens or more
  calibrationSamples: 32, // sequences by which the importance of each channel is judged
  maxCandidates: 2, // architectures of that size that are tried before one is chosen
  gguf: ["q8_0"], // files for llama.cpp, Ollama and LM Studio
  onProgress: ({ stage, done, total }) => process.stderr.write(`\r${stage}: ${Math.round((100 * done) / total)} %   `),
});

// Losses are nats per token of text that nothing was trained on: lower is better.
console.log(`\nteacher ${teacher.parameters} parameters, loss ${teacher.loss.toFixed(3)}`);
console.log(`pruned  ${pruned.parameters} parameters, loss ${pruned.loss.toFixed(3)}`);
console.log(`student ${student.parameters} parameters, loss ${student.loss.toFixed(3)}`);

const file = gguf?.files[0]?.files[0];
if (file === undefined) throw new Error("no GGUF file was written");
const prompt = "One morning, Mira went to";
const { text } = await generate({ model: file, prompt, sampling: { maxTokens: 24, temperature: 0 } });
console.log(`${file}: ${prompt}${text}`);
