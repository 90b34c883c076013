/**
 * A client of the foundry: asks for a smaller model, watches it come about, and downloads it.
 *
 *     npx coppice foundry                                       # in another terminal
 *     npx tsx examples/foundry-client.ts [URL [DIRECTORY]]      # FOUNDRY_KEY=... where it wants a key
 */
import { mkdirSync, writeFileSync } from "node:fs";
import path from "node:path";

const [url = "http://127.0.0.1:7700", directory = "from-the-foundry"] = process.argv.slice(2);
const key = process.env.FOUNDRY_KEY;

/** Every error of the API is `{ error: { message } }`, which says what was wrong. */
async function ask(method: "GET" | "POST", at: string, body?: unknown): Promise<Response> {
  const headers = { "content-type": "application/json", ...(key && { authorization: `Bearer ${key}` }) };
  const response = await fetch(`${url}/v1/${at}`, { method, headers, body: body ? JSON.stringify(body) : null });
  if (response.ok) return response;
  const { error } = (await response.json()) as { readonly error: { readonly message: string } };
  throw new Error(`${method} ${at}: ${response.status}: ${error.message}`);
}
const list = async <Item>(at: string): Promise<readonly Item[]> =>
  ((await (await ask("GET", at)).json()) as { readonly data: readonly Item[] }).data;

// Models are the foundry's own, uploaded ones (POST /v1/models) and those of the hub; here the first there is.
const [model] = await list<{ readonly id: string; readonly name: string }>("models");
if (model === undefined) throw new Error("the foundry has no model");
console.log(`compressing ${model.name}`);

const size = { target: "hidden=96,ffn=288", quantization: ["q8_0"] }; // or { device: "phone-8gb" }, which settles both
const settings = { tokens: 20_000, sequence_length: 64, calibration_samples: 32, refit_samples: 32 };
const created = await ask("POST", "jobs", { kind: "compress", model: model.id, ...size, ...settings });
const { id } = (await created.json()) as { readonly id: string };

// Server-sent events: a block of lines for each, `event: NAME` and `data: JSON`. The stream ends with the job.
const events = await ask("GET", `jobs/${id}/events`);
let text = "";
for await (const chunk of events.body?.pipeThrough(new TextDecoderStream()) ?? []) {
  text += chunk;
  const blocks = text.split("\n\n");
  text = blocks.pop() ?? ""; // not complete yet
  for (const block of blocks) if (/^event: (stage|end)$/m.test(block)) console.log(block.replaceAll("\n", " "));
}

const job = (await (await ask("GET", `jobs/${id}`)).json()) as {
  readonly state: string;
  readonly error: string | null;
};
if (job.state !== "done") throw new Error(`the job ${job.state}: ${job.error}`);
mkdirSync(directory, { recursive: true });
for (const { name, bytes } of await list<{ readonly name: string; readonly bytes: number }>(`jobs/${id}/artifacts`)) {
  const file = await ask("GET", `jobs/${id}/artifacts/${encodeURIComponent(name)}`);
  writeFileSync(path.join(directory, path.basename(name)), Buffer.from(await file.arrayBuffer()));
  console.log(`${path.join(directory, path.basename(name))}: ${bytes} bytes`);
}
