export { isLoopback, type RunningFoundry, startFoundry, withTenants } from "./foundry.js";
export { foundryOpenApi } from "./openapi.js";
export type { FoundryOptions } from "./options.js";
export { runWorker, type WorkerProcessOptions } from "./run-worker.js";
export { defaultDataDirectory } from "./state.js";
export { ROLES, type Role } from "./store/roles.js";
export type { Caller, KeyRow, Quota, Tenants } from "./store/tenants.js";
