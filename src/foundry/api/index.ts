import { deviceRoutes } from "./devices.js";
import { evaluationRoutes, jobRoutes } from "./jobs.js";
import { datasetRoutes, modelRoutes } from "./library.js";
import type { Route } from "./route.js";
import { healthRoutes, tenantRoutes } from "./tenants.js";

export type { FoundryServices, Route } from "./route.js";

/** All that can be asked for. */
export const ROUTES: readonly Route[] = [
  ...[...jobRoutes, ...evaluationRoutes, ...modelRoutes, ...datasetRoutes],
  ...[...deviceRoutes, ...tenantRoutes, ...healthRoutes],
];
