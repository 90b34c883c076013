/**
 * OpenAI's, Anthropic's and Ollama's APIs as a part of an Express application, beside its own routes.
 *
 *     npx tsx examples/serve-in-express.ts [MODEL [PORT]]
 *     curl http://127.0.0.1:3000/llm/v1/completions -d '{"prompt": "One morning,", "max_tokens": 16}'
 */
import type { AddressInfo } from "node:net";
import { fileURLToPath } from "node:url";
import { serve } from "coppice/serve";
import express from "express";

const [model = fileURLToPath(new URL("tiny-teacher", import.meta.url)), port = "3000"] = process.argv.slice(2);

// It listens on a free port of this machine as well. Several models may be given: they are loaded when they are asked for.
const llm = await serve({ models: [model], names: ["storyteller"], port: 0, slots: 2, logLevel: "error" });
await llm.ready;

const app = express();
app.use("/llm", llm.handler); // before bodies are parsed: it reads them itself
app.use(express.json());
app.get("/", (_, response) => {
  response.send("Chat at /llm, the API's description at /llm/docs");
});

// A route of the application's own that asks the model.
app.post("/story", async (request, response) => {
  const { hero } = request.body as { readonly hero: string };
  const answer = await fetch(`${llm.url}/v1/completions`, {
    method: "POST",
    headers: { "content-type": "application/json" },
    body: JSON.stringify({ model: "storyteller", prompt: `One morning, ${hero} went to`, max_tokens: 24 }),
  });
  const { choices } = (await answer.json()) as { readonly choices: readonly { readonly text: string }[] };
  response.json({ story: `One morning, ${hero} went to${choices[0]?.text}` });
});

const server = app.listen(Number(port), "127.0.0.1", () => {
  console.log(`http://127.0.0.1:${(server.address() as AddressInfo).port}`);
});

// Ctrl-C or SIGTERM: answers that are under way are finished first.
for (const signal of ["SIGINT", "SIGTERM"] as const)
  process.once(signal, async () => {
    server.close();
    await llm.close();
  });
