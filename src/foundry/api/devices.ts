import { z } from "zod";
import { DEVICES, fitDevice, profileOf, THIS_MACHINE } from "../../devices/index.js";
import { modelFromConfig } from "../../models/index.js";
import { ApiError } from "../../serve/errors.js";
import { CoppiceError } from "../../system/errors.js";
import { contextLength, deviceId } from "../specification.js";
import { listOf, orNotFound, type Route, route } from "./route.js";

const device = z.object({
  id: z.string(),
  name: z.string(),
  kind: z.string(),
  contextLength: z.number().int(),
  usableBytes: z.number(),
  bandwidth: z.number(),
  compute: z.number(),
});

/** The service's own machine has no fixed rates: it is measured when a plan asks for it. */
const listedDevice = device.partial({ usableBytes: true, bandwidth: true, compute: true });
const LISTED_DEVICES: readonly z.infer<typeof listedDevice>[] = [
  ...DEVICES,
  { id: THIS_MACHINE, name: "The machine that runs this service", kind: "laptop", contextLength: 8192 },
];

const candidate = z.looseObject({
  parameters: z.number().int(),
  share: z.number(),
  kind: z.string(),
  tokensPerSecond: z.number(),
  expectedLoss: z.number(),
  fits: z.boolean(),
  onFront: z.boolean(),
  sizes: z.record(z.string(), z.number()),
  memory: z.object({
    weightBytes: z.number(),
    cacheBytes: z.number(),
    bufferBytes: z.number(),
    totalBytes: z.number(),
  }),
});

export const deviceRoutes: readonly Route[] = [
  route("Devices", "GET /v1/devices", {
    summary: "List the devices to plan for",
    needs: "viewer",
    reply: listOf(listedDevice),
    answer: async () => ({ data: LISTED_DEVICES }),
  }),
  route("Devices", "GET /v1/devices/{id}", {
    summary: "Get a device",
    needs: "viewer",
    parameters: z.strictObject({ id: z.string().max(60) }),
    reply: listedDevice,
    answer: async ({ parameters }) =>
      orNotFound(
        LISTED_DEVICES.find(({ id }) => id === parameters.id),
        "device",
      ),
  }),
  route("Devices", "POST /v1/plans", {
    summary: "Compare cuts and file types of a model for a device: memory, speed and expected loss",
    needs: "viewer",
    body: z.strictObject({
      model: z.uuid(),
      device: deviceId,
      context_length: contextLength.optional(),
      tokens_per_second: z.number().min(0).max(1e6).optional().describe("minimum speed"),
    }),
    reply: z.object({
      device,
      contextLength: z.number().int(),
      candidates: z.array(candidate),
      best: candidate.nullable(),
    }),
    answer: async ({ body, caller }, { library, materials }) => {
      const model = orNotFound(await library.model(caller.tenant, body.model), "model");
      if (model.state !== "ready") throw new ApiError(409, "the model is not complete yet", { param: "model" });
      try {
        const facts = await materials.facts(caller.tenant, model);
        const { best, ...fit } = fitDevice(modelFromConfig(facts.config), await profileOf(body.device), {
          storedBytes: model.bytes || undefined, // unknown for a hub model that has not been downloaded
          contextLength: body.context_length,
          tokensPerSecond: body.tokens_per_second,
        });
        return { ...fit, best: best ?? null };
      } catch (error) {
        if (error instanceof CoppiceError) throw new ApiError(400, materials.withoutPaths(error.message));
        throw error;
      }
    },
  }),
];
