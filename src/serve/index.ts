export { ApiKeys, hashKey } from "./keys.js";
export { type ServeJob, serve } from "./serve.js";
export { type RunningServer, type ServerOptions, startServer } from "./server.js";
