import { Command, Option } from "commander";
import type { Profile } from "../serve/index.js";
import { PROFILE_NAMES, type ProfileName } from "../serve/profile-names.js";
import { UsageError } from "../system/errors.js";
import { formatBytes } from "../system/format.js";
import { action, example, SERVICE_ENDS, table } from "./command.js";
import {
  addCommon,
  type CommonFlags,
  parseAtLeastOne,
  parseBytes,
  parseNames,
  parsePositive,
  parseWhole,
} from "./options.js";

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

/** An environment variable that gives an option too. */
const variable = (option: Option): Option =>
  option.env(`COPPICE_SERVE_${option.attributeName().replace(/[A-Z]/g, "_$&").toUpperCase()}`);

/** An option that an environment variable may give. */
const option = (flags: string, description: string, parse?: (text: string) => unknown): Option => {
  const made = variable(new Option(flags, description));
  return parse === undefined ? made : made.argParser(parse);
};

const command = addCommon(
  new Command("serve").description("Serve models over OpenAI's and Anthropic's API, until it is stopped"),
)
  .argument("[models...]", "model directories, .gguf files or hub ids; the first is meant where a request names none")
  .addOption(option("--models <list>", "the same, comma-separated", parseNames))
  .addOption(option("--list-profiles", "say what each profile would use here, and which suits"))
  .addOption(option("--profile <name>", "what to serve for: sets slots, context and batch").choices(PROFILE_NAMES))
  .addOption(option("--host <address>", "address to listen on (default: 127.0.0.1)"))
  .addOption(option("--port <n>", "port to listen on, 0 for any that is free (default: 8000)", parseWhole))
  .addOption(option("--name <names>", "what the API calls the models (default: their files' names)", parseNames))
  .addOption(option("--slots <n>", "requests that a model computes together (default: 4)", parseAtLeastOne))
  .addOption(option("--queue <n>", "requests that may wait; others are answered 429 (default: 64)", parseWhole))
  .addOption(
    option(
      "--context-size <n>",
      "tokens of a prompt and its answer (default: the model's, 8192 at most)",
      parseAtLeastOne,
    ),
  )
  .addOption(option("--batch-size <n>", "tokens of prompts that are computed at once (default: 512)", parseAtLeastOne))
  .addOption(option("--max-tokens <n>", "most tokens of an answer (default: what the context leaves)", parseAtLeastOne))
  .addOption(
    option("--overflow <policy>", "what is done with a prompt that is too long (default: refuse)").choices([
      ...["refuse", "drop-oldest"],
    ]),
  )
  .addOption(option("--draft <model>", "smaller model of the same tokenizer that guesses ahead for the first model"))
  .addOption(
    option(
      "--lora <files>",
      "LoRA adapters for the first model: .gguf files or PEFT directories, also ADAPTER=SCALE",
      parseNames,
    ),
  )
  .addOption(
    option(
      "--memory <size>",
      "what models may take together; the one idle for longest makes room (default: 75 %)",
      parseBytes,
    ),
  )
  .addOption(option("--timeout <seconds>", "longest time of a request (default: 600)", parsePositive))
  .addOption(
    option("--drain <seconds>", "how long running requests may take when it is stopped (default: 30)", parsePositive),
  )
  .addOption(option("--max-body <size>", "largest request (default: 8MiB)", parseBytes))
  .addOption(option("--api-keys <file>", "SHA-256 of each key that may ask, a line each (default: everybody may)"))
  .addOption(option("--cors <origins>", "origins whose web pages may ask, comma-separated, or *", parseNames))
  .addOption(
    option(
      "--allowed-hosts <names>",
      "more names by which it is reached without keys, comma-separated, or * (default: this machine's)",
      parseNames,
    ),
  )
  .addOption(
    option(
      "--keep-alive <seconds>",
      "how long an idle connection is kept for the next request (default: 65)",
      parsePositive,
    ),
  )
  .addOption(option("--tls-cert <file>", "certificate in PEM"))
  .addOption(option("--tls-key <file>", "its key in PEM"))
  .addOption(
    option("--log-level <level>", "what is logged on standard error (default: info)").choices([
      ...["silent", "error", "info"],
    ]),
  )
  .addOption(option("--log-prompts", "put what is asked and answered into the log"));
for (const shared of command.options) if (shared.envVar === undefined) variable(shared);

export const serveCommand = example(
  command.action(
    action(async ({ job, print }, flags: Flags, given: string[]) => {
      const models = given.length > 0 ? given : (flags.models ?? []);
      const { signal, ...options } = job;
      const { listProfiles, serve } = await import("../serve/index.js");
      if (flags.listProfiles) return print(await listProfiles(models[0], options), renderProfiles);
      if (models.length === 0) throw new UsageError("serve needs a model: coppice serve MODEL");
      const { name: names, queue: queueLimit, timeout: timeoutSeconds, drain: drainSeconds } = flags;
      const {
        maxBody: maxBodyBytes,
        memory: memoryLimit,
        apiKeys: keysFile,
        cors: corsOrigins,
        allowedHosts,
        keepAlive: keepAliveSeconds,
        draft: draftModel,
      } = flags;
      const { host, port, slots, contextSize, batchSize, maxTokens, overflow, lora, profile } = flags;
      const { tlsCert, tlsKey, logLevel, logPrompts } = flags;
      const all = {
        ...{
          models,
          names,
          queueLimit,
          timeoutSeconds,
          drainSeconds,
          maxBodyBytes,
          memoryLimit,
          keysFile,
          corsOrigins,
          allowedHosts,
          keepAliveSeconds,
        },
        ...{ draftModel, host, port, slots, contextSize, batchSize, maxTokens, overflow, lora, profile },
        ...{ tlsCert, tlsKey, logLevel, logPrompts },
      };
      const set = Object.fromEntries(Object.entries(all).filter(([, value]) => value !== undefined));
      const server = await serve({ ...options, ...set, models });
      try {
        await Promise.race([server.ready, stopped(signal)]);
        if (!signal?.aborted)
          print(
            { url: server.url },
            ({ url }) =>
              `listening on ${url} (chat there, API at ${url}/v1, its documentation at ${url}/docs); Ctrl-C ends it`,
          );
        await stopped(signal);
      } finally {
        await server.close();
      }
    }, SERVICE_ENDS),
  ),
  "coppice serve student-Q4_K_M.gguf --port 8000",
  "coppice serve ./student ./teacher --memory 8GiB --api-keys keys.txt",
  "coppice serve --list-profiles ./student",
);

const stopped = (signal: AbortSignal | undefined): Promise<void> =>
  new Promise((resolve) => {
    if (signal?.aborted) resolve();
    signal?.addEventListener("abort", () => resolve(), { once: true });
  });

const renderProfiles = (profiles: readonly Profile[]): string =>
  table(
    ["profile", "device", "slots", "context", "batch", "memory", "here"],
    profiles.map(({ name, device, slots, contextSize, batchSize, memoryBytes, fits, suits }) => [
      ...[name, device, `${slots}`, `${contextSize}`, `${batchSize}`],
      ...[memoryBytes === undefined ? "-" : formatBytes(memoryBytes), suits ? "suits" : fits ? "fits" : "does not fit"],
    ]),
  );
