import type { Profile, ServeJob } from "../serve/index.js";
import { PROFILE_NAMES, type ProfileName } from "../serve/profile-names.js";
import { UsageError } from "../system/errors.js";
import { formatBytes } from "../system/format.js";
import { action, SERVICE_ENDS, stopped } from "./action.js";
import { command, environment, option } from "./command.js";
import { type CommonFlags, common, defined } from "./options.js";
import { parseAtLeastOne, parseBytes, parseNames, parsePort, parsePositive, parseWhole } from "./parse.js";
import { table } from "./table.js";

interface Flags extends CommonFlags {
  readonly models?: string[] | undefined;
  readonly listProfiles?: boolean | undefined;
  readonly profile?: ProfileName | undefined;
  readonly host?: string | undefined;
  readonly port?: number | undefined;
  readonly name?: string[] | undefined;
  readonly slots?: number | undefined;
  readonly queue?: number | undefined;
  readonly contextSize?: number | undefined;
  readonly batchSize?: number | undefined;
  readonly maxTokens?: number | undefined;
  readonly overflow?: "refuse" | "drop-oldest" | undefined;
  readonly draft?: string | undefined;
  readonly lora?: string[] | undefined;
  readonly memory?: number | undefined;
  readonly timeout?: number | undefined;
  readonly drain?: number | undefined;
  readonly maxBody?: number | undefined;
  readonly apiKeys?: string | undefined;
  readonly cors?: string[] | undefined;
  readonly allowedHosts?: string[] | undefined;
  readonly keepAlive?: number | undefined;
  readonly tlsCert?: string | undefined;
  readonly tlsKey?: string | undefined;
  readonly logLevel?: "silent" | "error" | "info" | undefined;
  readonly logPrompts?: boolean | undefined;
}

export const serveCommand = command(
  "serve",
  "Serve models over OpenAI's, Anthropic's and Ollama's APIs, until it is stopped",
)
  .with(common)
  .argument("[models...]", "model directories, .gguf files or hub ids; the first answers requests that name none")
  .option("--models <list>", "the same, comma-separated", parseNames)
  .option("--list-profiles", "print what each profile would use here, and which suits")
  .addOption(option("--profile <name>", "what to serve for: sets slots, context and batch").choices(PROFILE_NAMES))
  .option("--host <address>", "address to listen on (default: 127.0.0.1)")
  .option("--port <n>", "port to listen on, 0 for any that is free (default: 8000)", parsePort)
  .option("--name <names>", "what the API calls the models (default: their files' names)", parseNames)
  .option("--slots <n>", "requests that a model computes together (default: 4)", parseAtLeastOne)
  .option("--queue <n>", "requests that may wait; others are answered 429 (default: 64)", parseWhole)
  .option(
    "--context-size <n>",
    "tokens of a prompt and its answer (default: the model's, 8192 at most)",
    parseAtLeastOne,
  )
  .option("--batch-size <n>", "tokens of prompts that are computed at once (default: 512)", parseAtLeastOne)
  .option("--max-tokens <n>", "most tokens of an answer (default: what the context leaves)", parseAtLeastOne)
  .addOption(
    option("--overflow <policy>", "what is done with a prompt that is too long (default: refuse)").choices([
      "refuse",
      "drop-oldest",
    ]),
  )
  .option("--draft <model>", "smaller model of the same tokenizer that guesses ahead for the first model")
  .option(
    "--lora <files>",
    "LoRA adapters for the first model: .gguf files or PEFT directories, also ADAPTER=SCALE",
    parseNames,
  )
  .option(
    "--memory <size>",
    "what models may take together; the one idle for longest makes room (default: 75 %)",
    parseBytes,
  )
  .option("--timeout <seconds>", "longest time of a request (default: 600)", parsePositive)
  .option("--drain <seconds>", "how long running requests may take when it is stopped (default: 30)", parsePositive)
  .option("--max-body <size>", "largest request (default: 8MiB)", parseBytes)
  .option("--api-keys <file>", "SHA-256 of each key that is accepted, a line each (default: everybody may ask)")
  .option("--cors <origins>", "origins whose web pages may ask, comma-separated, or *", parseNames)
  .option(
    "--allowed-hosts <names>",
    "more names by which it is reached without keys, comma-separated, or * (default: this machine's)",
    parseNames,
  )
  .option(
    "--keep-alive <seconds>",
    "how long an idle connection is kept for the next request (default: 65)",
    parsePositive,
  )
  .option("--tls-cert <file>", "certificate in PEM")
  .option("--tls-key <file>", "its key in PEM")
  .addOption(
    option("--log-level <level>", "what is logged on standard error (default: info)").choices([
      "silent",
      "error",
      "info",
    ]),
  )
  .option("--log-prompts", "put prompts and answers into the log")
  .with(environment("COPPICE_SERVE"))
  .examples(
    "coppice serve student-Q4_K_M.gguf --port 8000",
    "coppice serve ./student ./teacher --memory 8GiB --api-keys keys.txt",
    "coppice serve --list-profiles ./student",
  )
  .action(
    action(async ({ job, print }, flags: Flags, named: string[]) => {
      const models = named.length > 0 ? named : (flags.models ?? []);
      const { signal, ...options } = job;
      const { listProfiles, serve } = await import("../serve/index.js");
      if (flags.listProfiles) return print(await listProfiles(models[0], options), renderProfiles);
      if (models.length === 0) throw new UsageError("serve needs a model: coppice serve MODEL");
      const server = await serve({ ...options, ...serveOptions(flags), models });
      try {
        await Promise.race([server.ready, stopped(signal)]);
        if (!signal?.aborted) print({ url: server.url }, renderAddress);
        await stopped(signal);
      } finally {
        await server.close();
      }
    }, SERVICE_ENDS),
  );

function serveOptions(flags: Flags): Partial<ServeJob> {
  const { host, port, slots, contextSize, batchSize, maxTokens, overflow, lora, profile } = flags;
  const { allowedHosts, tlsCert, tlsKey, logLevel, logPrompts } = flags;
  return defined({
    names: flags.name,
    queueLimit: flags.queue,
    timeoutSeconds: flags.timeout,
    drainSeconds: flags.drain,
    maxBodyBytes: flags.maxBody,
    memoryLimit: flags.memory,
    keysFile: flags.apiKeys,
    corsOrigins: flags.cors,
    allowedHosts,
    keepAliveSeconds: flags.keepAlive,
    draftModel: flags.draft,
    host,
    port,
    slots,
    contextSize,
    batchSize,
    maxTokens,
    overflow,
    lora,
    profile,
    tlsCert,
    tlsKey,
    logLevel,
    logPrompts,
  });
}

const renderAddress = ({ url }: { readonly url: string }): string =>
  `listening on ${url} (chat there, API at ${url}/v1, its documentation at ${url}/docs); Ctrl-C ends it`;

const renderProfiles = (profiles: readonly Profile[]): string =>
  table(
    ["profile", "device", "slots", "context", "batch", "memory", "here"],
    profiles.map(({ name, device, slots, contextSize, batchSize, memoryBytes, fits, suits }) => [
      name,
      device,
      `${slots}`,
      `${contextSize}`,
      `${batchSize}`,
      memoryBytes === undefined ? "-" : formatBytes(memoryBytes),
      suits ? "suits" : fits ? "fits" : "does not fit",
    ]),
  );
