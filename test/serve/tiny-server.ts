import path from "node:path";
import { type RunningServer, type ServeJob, serve } from "../../src/serve/index.js";
import { temporaryDirectory } from "../temporary.js";

/** The model's name in the API. */
export const model = "tiny-teacher";

process.env.COPPICE_CACHE = path.join(temporaryDirectory(), "cache");

/** Serves the example model on the processor; it is exported to a cache of the test's own. */
export function serveTiny(options: Partial<ServeJob> = {}): Promise<RunningServer> {
  const directory = path.resolve(import.meta.dirname, "../../examples", model);
  return serve({ models: [directory], port: 0, device: "cpu", threads: 1, logLevel: "silent", slots: 2, ...options });
}
