export { ApiKeys, hashKey } from "./keys.js";
export { PROFILE_NAMES, type ProfileName } from "./profile-names.js";
export type { Profile } from "./profiles.js";
export { listProfiles, type ServeJob, serve } from "./serve.js";
export { type RunningServer, type ServerOptions, startServer } from "./server.js";
