import type { FoundryOptions } from "../foundry/index.js";
import { ROLES, type Role } from "../foundry/store/roles.js";
import { DEVICE_KINDS } from "../ggml/device-kinds.js";
import { CoppiceError } from "../system/errors.js";
import { action, SERVICE_ENDS, stopped } from "./action.js";
import { command, environment, type OptionGroup, option } from "./command.js";
import { type CommonFlags, defined, output } from "./options.js";
import { parseAtLeastOne, parseBytes, parseCount, parseNames, parsePort, parsePositive, parseWhole } from "./parse.js";
import { table } from "./table.js";

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

const fromEnvironment = environment("COPPICE_FOUNDRY");

/** Where data and files are: every command of the foundry needs to know. */
const places: OptionGroup = (command) =>
  command
    .option("--data <dir>", "embedded database, files and secrets (default: ~/.local/share/coppice/foundry)")
    .addOption(
      option("--database <url>", "postgres://... (default: embedded PGlite in the data directory)").env("DATABASE_URL"),
    )
    .option("--storage <place>", "directory or s3://bucket/prefix (default: in the data directory)")
    .addOption(option("--log-level <level>", "what is logged on standard error").choices(["silent", "error", "info"]));

const compute: OptionGroup = (command) =>
  command
    .addOption(
      option("--device <kind>", "where jobs compute")
        .choices(["auto", ...DEVICE_KINDS])
        .default("auto"),
    )
    .option("--threads <n>", "CPU threads of each worker", parseAtLeastOne)
    .option(
      "--dead-after <seconds>",
      "a worker not heard from for this long is dead: others take its job (default: 15)",
      parsePositive,
    );

const placesOf = ({ data, database, storage, logLevel }: Flags): FoundryOptions => ({
  data,
  databaseUrl: database,
  storage,
  logLevel,
});

const computeOf = ({ device, threads, deadAfter }: Flags): FoundryOptions => ({
  device,
  threads,
  deadAfterSeconds: deadAfter,
});

const workerCommand = command("worker", "Only do jobs: start as many, on as many machines, as you want")
  .with(places, compute, fromEnvironment, output)
  .addOption(option("--attached", "end with the process that started it").hideHelp())
  .examples(
    "DATABASE_URL=postgres://db/foundry coppice foundry worker --storage s3://models/foundry",
    "mpirun -n 4 coppice foundry worker --database postgres://db/foundry --storage s3://models/foundry",
  )
  .action(
    action(async ({ job }, flags: Flags) => {
      const { signal = new AbortController().signal } = job;
      const { runWorker } = await import("../foundry/index.js");
      const { ranks } = job;
      await runWorker({ ...placesOf(flags), ...computeOf(flags), attached: flags.attached === true, ranks }, signal);
    }, "giving the job back"),
  );

const addKeyCommand = command("add", "Make a key, and show it once")
  .with(places, fromEnvironment, output)
  .argument("<name>", "what the key is called")
  .option("--tenant <tenant>", "whose jobs, data and models it sees (default: the key's name)")
  .addOption(option("--role <role>", "what it is allowed to do").choices(ROLES).default("user"))
  .examples("coppice foundry keys add laptop --tenant research --role user")
  .action(
    action(async ({ print }, flags: Flags, name: string) => {
      const { tenant = name, role = "user" } = flags;
      const { withTenants } = await import("../foundry/index.js");
      const added = await withTenants(placesOf(flags), (tenants) => tenants.addKey(tenant, name, role));
      print({ ...added.row, key: added.key }, ({ key }) => key);
    }),
  );

const listKeysCommand = command("list", "List keys, without their secrets")
  .with(places, fromEnvironment, output)
  .examples("coppice foundry keys list")
  .action(
    action(async ({ print }, flags: Flags) => {
      const { withTenants } = await import("../foundry/index.js");
      print(await withTenants(placesOf(flags), (tenants) => tenants.keys()), (keys) =>
        table(
          ["id", "tenant", "name", "role"],
          keys.map(({ id, tenant, name, role }) => [id, tenant, name, role]),
        ),
      );
    }),
  );

const removeKeyCommand = command("remove", "Revoke a key")
  .with(places, fromEnvironment, output)
  .argument("<id>", "as list shows it")
  .examples("coppice foundry keys remove 0b6c5e0e-3c1c-4f6e-9a53-6d9b2f9c1a11")
  .action(
    action(async ({ print }, flags: Flags, id: string) => {
      const { withTenants } = await import("../foundry/index.js");
      const removed = await withTenants(placesOf(flags), (tenants) => tenants.removeKey(id));
      if (!removed)
        throw new CoppiceError(`there is no key ${id}: \`coppice foundry keys list\` shows those there are`);
      print({ removed }, () => "removed");
    }),
  );

const keysCommand = command("keys", "API keys: from the first one on, everybody needs one")
  .addCommand(addKeyCommand)
  .addCommand(listKeysCommand)
  .addCommand(removeKeyCommand);

export const foundryCommand = command(
  "foundry",
  "A service and pages: give it a model and a device, get back a model that fits",
)
  .with(places, compute)
  .option("--host <address>", "address to listen on (default: 127.0.0.1; others need keys)")
  .option("--port <n>", "port to listen on, 0 for any that is free (default: 7700)", parsePort)
  .option("--workers <n>", "processes that do jobs, 0 for none (default: 1)", parseWhole)
  .option("--max-upload <size>", "largest upload (default: 50GB)", parseBytes)
  .option("--max-stored <size>", "how much a tenant may keep (default: no limit)", parseBytes)
  .option("--max-jobs <n>", "jobs of a tenant that wait or run (default: 1000)", parseAtLeastOne)
  .option("--max-tokens <n>", "tokens of a job (default: no limit)", parseCount)
  .option("--cors <origins>", "origins whose web pages may ask, comma-separated", parseNames)
  .with(fromEnvironment, output)
  .examples(
    "coppice foundry",
    "DATABASE_URL=postgres://db/foundry coppice foundry --workers 0 --host 0.0.0.0 --storage s3://models/foundry",
  )
  .action(
    action(async ({ job, print }, flags: Flags) => {
      const { host, port, workers, maxStored, maxJobs, maxTokens } = flags;
      const { startFoundry } = await import("../foundry/index.js");
      const foundry = await startFoundry({
        ...placesOf(flags),
        ...computeOf(flags),
        host,
        port,
        workers,
        quota: defined({ max_bytes: maxStored, max_jobs: maxJobs, max_tokens: maxTokens }),
        maxUploadBytes: flags.maxUpload,
        corsOrigins: flags.cors,
      });
      try {
        print({ url: foundry.url }, renderAddress);
        await stopped(job.signal);
      } finally {
        await foundry.close();
      }
    }, SERVICE_ENDS),
  )
  .addCommand(workerCommand)
  .addCommand(keysCommand);

const renderAddress = ({ url }: { readonly url: string }): string =>
  `the foundry is at ${url} (its API's documentation at ${url}/docs); Ctrl-C ends it`;
