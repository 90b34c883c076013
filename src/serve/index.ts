export type { Overflow } from "./engine/conversation.js";
export { ApiKeys, type Client, hashKey } from "./keys.js";
export { PROFILE_NAMES, type ProfileName } from "./profile-names.js";
export type { Profile } from "./profiles.js";
export { listProfiles, type ServeJob, serve } from "./serve.js";
export type { RunningServer } from "./server.js";
