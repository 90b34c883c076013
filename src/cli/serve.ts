import { Command, Option } from "commander";
import { serve } from "../serve/index.js";
import { action, example } from "./command.js";
import { addCommon, type CommonFlags, MODEL, parseBytes, parseNames, parsePositive, parseWhole } from "./options.js";

interface Flags extends CommonFlags {
  readonly host?: string;
  readonly port?: number;
  readonly name?: string;
  readonly slots?: number;
  readonly queue?: number;
  readonly contextSize?: number;
  readonly timeout?: number;
  readonly drain?: number;
  readonly maxBody?: number;
  readonly apiKeys?: string;
  readonly cors?: string[];
  readonly tlsCert?: string;
  readonly tlsKey?: string;
  readonly logLevel?: "silent" | "error" | "info";
}

/** An option that an environment variable may give too. */
const option = (flags: string, description: string, parse?: (text: string) => unknown): Option => {
  const made = new Option(flags, description);
  made.env(`COPPICE_SERVE_${made.attributeName().replace(/[A-Z]/g, "_$&").toUpperCase()}`);
  return parse === undefined ? made : made.argParser(parse);
};

const command = addCommon(new Command("serve").description("Serve a model over OpenAI's API, until it is stopped"))
  .argument("<model>", MODEL)
  .addOption(option("--host <address>", "address to listen on (default: 127.0.0.1)"))
  .addOption(option("--port <n>", "port to listen on, 0 for any that is free (default: 8000)", parseWhole))
  .addOption(option("--name <name>", "what the API calls the model (default: its file's or directory's name)"))
  .addOption(option("--slots <n>", "requests that are computed together (default: 4)", parseWhole))
  .addOption(option("--queue <n>", "requests that may wait; others are answered 429 (default: 64)", parseWhole))
  .addOption(
    option("--context-size <n>", "tokens of a prompt and its answer (default: the model's, 8192 at most)", parseWhole),
  )
  .addOption(option("--timeout <seconds>", "longest time of a request (default: 600)", parsePositive))
  .addOption(
    option("--drain <seconds>", "how long running requests may take when it is stopped (default: 30)", parsePositive),
  )
  .addOption(option("--max-body <size>", "largest request (default: 8MiB)", parseBytes))
  .addOption(option("--api-keys <file>", "SHA-256 of each key that may ask, a line each (default: everybody may)"))
  .addOption(option("--cors <origins>", "origins whose web pages may ask, comma-separated, or *", parseNames))
  .addOption(option("--tls-cert <file>", "certificate in PEM"))
  .addOption(option("--tls-key <file>", "its key in PEM"))
  .addOption(
    option("--log-level <level>", "what is logged on standard error (default: info)").choices([
      "silent",
      "error",
      "info",
    ]),
  );

export const serveCommand = example(
  command.action(
    action(async ({ job, print }, flags: Flags, model: string) => {
      const { host, port, name, slots, queue: queueLimit, contextSize, timeout: timeoutSeconds } = flags;
      const { drain: drainSeconds, maxBody: maxBodyBytes, apiKeys: keysFile, cors: corsOrigins } = flags;
      const { signal, ...options } = job;
      const server = await serve({
        ...options,
        ...({ model, host, port, name, slots, queueLimit, contextSize, timeoutSeconds, drainSeconds } as object),
        ...({ maxBodyBytes, keysFile, corsOrigins, tlsCert: flags.tlsCert, tlsKey: flags.tlsKey } as object),
        ...(flags.logLevel && { logLevel: flags.logLevel }),
        model,
      });
      print({ url: server.url }, ({ url }) => `listening on ${url} (OpenAI's API at ${url}/v1); Ctrl-C ends it`);
      await new Promise<void>((resolve) => {
        if (signal?.aborted) resolve();
        signal?.addEventListener("abort", () => resolve(), { once: true });
      });
      await server.close();
    }),
  ),
  "coppice serve student-Q4_K_M.gguf --port 8000",
  "COPPICE_SERVE_PORT=9000 coppice serve ./student --slots 8 --api-keys keys.txt",
);
