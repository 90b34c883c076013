import { datasetRoutes } from "./datasets.js";
import { deviceRoutes } from "./devices.js";
import { evaluationRoutes, jobRoutes } from "./jobs.js";
import { modelRoutes } from "./models.js";
import type { Route } from "./route.js";
import { healthRoutes, tenantRoutes } from "./tenants.js";

export type { FoundryServices, Route } from "./route.js";

/** Every endpoint of the API. */
export const ROUTES: readonly Route[] = [
  jobRoutes,
  evaluationRoutes,
  modelRoutes,
  datasetRoutes,
  deviceRoutes,
  tenantRoutes,
  healthRoutes,
].flat();
