export {
  defaultDataDirectory,
  type FoundryOptions,
  isLoopback,
  type RunningFoundry,
  runWorker,
  startFoundry,
  withTenants,
} from "./foundry.js";
export { foundryOpenApi } from "./openapi.js";
export { ROLES, type Role } from "./store/roles.js";
