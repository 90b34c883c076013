import { Command, Option } from "commander";
import type { FoundryOptions } from "../foundry/index.js";
import { ROLES, type Role } from "../foundry/store/roles.js";
import { DEVICE_KINDS } from "../ggml/device-kinds.js";
import { action, example, SERVICE_ENDS, table } from "./command.js";
import {
  type CommonFlags,
  parseAtLeastOne,
  parseBytes,
  parseCount,
  parseNames,
  parsePositive,
  parseWhole,
} from "./options.js";

interface Flags extends CommonFlags {
  readonly data?: string | undefined;
  readonly database?: string | undefined;
  readonly storage?: string | undefined;
  readonly host?: string | undefined;
  readonly port?: number | undefined;
  readonly workers?: number | undefined;
  readonly maxUpload?: number | undefined;
  readonly cors?: string[] | undefined;
  readonly deadAfter?: number | undefined;
  readonly maxStored?: number | undefined;
  readonly maxJobs?: number | undefined;
  readonly maxTokens?: number | undefined;
  readonly logLevel?: "silent" | "error" | "info" | undefined;
  readonly attached?: boolean | undefined;
  readonly tenant?: string | undefined;
  readonly role?: Role | undefined;
}

const env = (
  option: Option,
  name = `COPPICE_FOUNDRY_${option.attributeName().replace(/[A-Z]/g, "_$&").toUpperCase()}`,
) => option.env(name);

/** Where everything is: what all of the foundry's commands need to know. */
const addPlaces = (command: Command): Command =>
  command
    .addOption(
      env(new Option("--data <dir>", "embedded database, files and secrets (default: ~/.local/share/coppice/foundry)")),
    )
    .addOption(
      env(
        new Option("--database <url>", "postgres://...; embedded PGlite in the data directory without"),
        "DATABASE_URL",
      ),
    )
    .addOption(env(new Option("--storage <place>", "directory or s3://bucket/prefix (default: in the data directory)")))
    .addOption(
      env(new Option("--log-level <level>", "what is logged on standard error").choices(["silent", "error", "info"])),
    );

const addCompute = (command: Command): Command =>
  command
    .addOption(
      env(new Option("--device <kind>", "where jobs compute").choices(["auto", ...DEVICE_KINDS]).default("auto")),
    )
    .addOption(env(new Option("--threads <n>", "CPU threads of each worker").argParser(parseAtLeastOne)))
    .addOption(
      env(
        new Option(
          "--dead-after <seconds>",
          "a worker not heard of for so long is dead: others take its job (default: 15)",
        ).argParser(parsePositive),
      ),
    );

const placesOf = ({ data, database, storage, logLevel }: Flags): FoundryOptions => ({
  data,
  databaseUrl: database,
  storage,
  logLevel,
});
const computeOf = ({ device, threads, deadAfter }: Flags): FoundryOptions => ({
  ...{ device, deadAfterSeconds: deadAfter },
  threads,
});

const stopped = (signal: AbortSignal | undefined): Promise<void> =>
  new Promise((resolve) => {
    if (signal?.aborted) resolve();
    signal?.addEventListener("abort", () => resolve(), { once: true });
  });

const worker = example(
  addCompute(
    addPlaces(new Command("worker").description("Only do jobs: as many processes, on as many machines, as are wanted")),
  )
    .addOption(new Option("--attached", "end with the process that started it").hideHelp())
    .option("--json")
    .action(
      action(async ({ job }, flags: Flags) => {
        const { signal = new AbortController().signal } = job;
        const { runWorker } = await import("../foundry/index.js");
        await runWorker({ ...placesOf(flags), ...computeOf(flags), attached: flags.attached === true }, signal);
      }, "giving the job back"),
    ),
  "DATABASE_URL=postgres://db/foundry coppice foundry worker --storage s3://models/foundry",
);

const keys = new Command("keys").description("API keys: from the first one on, everybody needs one");
keys.addCommand(
  example(
    addPlaces(new Command("add").description("Make a key, and show it once"))
      .argument("<name>", "what the key is called")
      .option("--tenant <tenant>", "whose jobs, data and models it sees", "local")
      .addOption(new Option("--role <role>", "what it may").choices([...ROLES]).default("user"))
      .option("--json")
      .action(
        action(async ({ print }, flags: Flags, name: string) => {
          const { tenant = "local", role = "user" } = flags;
          const { withTenants } = await import("../foundry/index.js");
          const made = await withTenants(placesOf(flags), (tenants) => tenants.addKey(tenant, name, role));
          print({ ...made.row, key: made.key }, ({ key }) => key);
        }),
      ),
    "coppice foundry keys add laptop --tenant research --role user",
  ),
);
keys.addCommand(
  example(
    addPlaces(new Command("list").description("List keys, without what they are"))
      .option("--json")
      .action(
        action(async ({ print }, flags: Flags) => {
          const { withTenants } = await import("../foundry/index.js");
          print(await withTenants(placesOf(flags), (tenants) => tenants.keys()), (all) =>
            table(
              ["id", "tenant", "name", "role"],
              all.map((one) => [one.id, one.tenant, one.name, one.role]),
            ),
          );
        }),
      ),
    "coppice foundry keys list",
  ),
);
keys.addCommand(
  example(
    addPlaces(new Command("remove").description("Take a key back"))
      .argument("<id>", "as list shows it")
      .option("--json")
      .action(
        action(async ({ print }, flags: Flags, id: string) => {
          const { withTenants } = await import("../foundry/index.js");
          print({ removed: await withTenants(placesOf(flags), (tenants) => tenants.removeKey(id)) }, ({ removed }) =>
            removed ? "removed" : "there is no such key",
          );
        }),
      ),
    "coppice foundry keys remove 0b6c5e0e-3c1c-4f6e-9a53-6d9b2f9c1a11",
  ),
);

export const foundryCommand = example(
  addCompute(
    addPlaces(
      new Command("foundry").description(
        "A service and pages: give it a model and a device, get back a model that fits",
      ),
    ),
  )
    .addOption(env(new Option("--host <address>", "address to listen on (default: 127.0.0.1; others need keys)")))
    .addOption(
      env(new Option("--port <n>", "port to listen on, 0 for any that is free (default: 7700)").argParser(parseWhole)),
    )
    .addOption(
      env(new Option("--workers <n>", "processes that do jobs, 0 for none (default: 1)").argParser(parseWhole)),
    )
    .addOption(env(new Option("--max-upload <size>", "largest upload (default: 50GB)").argParser(parseBytes)))
    .addOption(
      env(new Option("--max-stored <size>", "what a tenant may keep (default: no limit)").argParser(parseBytes)),
    )
    .addOption(
      env(new Option("--max-jobs <n>", "jobs of a tenant that wait or run (default: 1000)").argParser(parseAtLeastOne)),
    )
    .addOption(env(new Option("--max-tokens <n>", "tokens of a job (default: no limit)").argParser(parseCount)))
    .addOption(
      env(new Option("--cors <origins>", "origins whose web pages may ask, comma-separated").argParser(parseNames)),
    )
    .option("--json", "print the address as JSON")
    .action(
      action(async ({ job, print }, flags: Flags) => {
        const { host, port, workers, maxUpload, cors, maxStored, maxJobs, maxTokens } = flags;
        const quota = Object.fromEntries(
          Object.entries({ max_bytes: maxStored, max_jobs: maxJobs, max_tokens: maxTokens }).filter(
            ([, value]) => value !== undefined,
          ),
        );
        const { startFoundry } = await import("../foundry/index.js");
        const foundry = await startFoundry({
          ...{ ...placesOf(flags), ...computeOf(flags), host, port, workers, quota },
          ...{ maxUploadBytes: maxUpload, corsOrigins: cors },
        });
        try {
          print(
            { url: foundry.url },
            ({ url }) => `the foundry is at ${url} (its API's documentation at ${url}/docs); Ctrl-C ends it`,
          );
          await stopped(job.signal);
        } finally {
          await foundry.close();
        }
      }, SERVICE_ENDS),
    ),
  "coppice foundry",
  "DATABASE_URL=postgres://db/foundry coppice foundry --workers 0 --host 0.0.0.0 --storage s3://models/foundry",
)
  .addCommand(worker)
  .addCommand(keys);
