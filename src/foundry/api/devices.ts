import { z } from "zod";
import { DEVICES, fitDevice, profileOf, THIS_MACHINE } from "../../devices/index.js";
import { modelFromConfig } from "../../models/index.js";
import { ApiError } from "../../serve/errors.js";
import { CoppiceError } from "../../system/errors.js";
import { deviceId } from "../specification.js";
import { found, listOf, type Route, route } from "./route.js";

const device = z.object({
  ...{ id: z.string(), name: z.string(), kind: z.string(), contextLength: z.number().int() },
  ...{ usableBytes: z.number(), bandwidth: z.number(), compute: z.number() },
});

/** This machine has no fixed rates: it is measured when a plan asks for it. */
const listedDevice = device.partial({ usableBytes: true, bandwidth: true, compute: true });
const SERVICE_MACHINE = {
  id: THIS_MACHINE,
  name: "This machine, where the service runs",
  kind: "laptop",
  contextLength: 8192,
};

const candidate = z.looseObject({
  ...{ parameters: z.number().int(), share: z.number(), kind: z.string(), tokensPerSecond: z.number() },
  ...{ expectedLoss: z.number(), fits: z.boolean(), onFront: z.boolean() },
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
    ...{ summary: "Devices that can be planned for", needs: "viewer", reply: listOf(listedDevice) },
    answer: async () => ({ data: [...DEVICES, SERVICE_MACHINE] }),
  }),
  route("Devices", "GET /v1/devices/{id}", {
    summary: "A device",
    ...{ needs: "viewer", parameters: z.strictObject({ id: z.string().max(60) }), reply: listedDevice },
    answer: async ({ parameters }) =>
      found(
        [...DEVICES, SERVICE_MACHINE].find(({ id }) => id === parameters.id),
        "device",
      ),
  }),
  route("Devices", "POST /v1/plans", {
    summary:
      "Weighs cuts against types for a model and a device: what each would take, how fast it would be, and what it would lose",
    needs: "viewer",
    body: z.strictObject({
      model: z.uuid(),
      device: deviceId,
      context_length: z
        .number()
        .int()
        .min(16)
        .max(1 << 20)
        .optional(),
      tokens_per_second: z.number().min(0).max(1e6).optional().describe("least speed that is wanted"),
    }),
    reply: z.object({
      ...{ device, contextLength: z.number().int(), candidates: z.array(candidate), best: candidate.nullable() },
    }),
    answer: async ({ body, caller }, { library, materials }) => {
      const model = found(await library.model(caller.tenant, body.model), "model");
      if (model.state !== "ready") throw new ApiError(409, "the model is not complete yet", { param: "model" });
      try {
        const facts = await materials.facts(caller.tenant, model);
        const { best, ...fit } = fitDevice(modelFromConfig(facts.config), await profileOf(body.device), {
          storedBytes: model.bytes || undefined, // of a hub's model that is not here they are not known
          contextLength: body.context_length,
          tokensPerSecond: body.tokens_per_second,
        });
        return { ...fit, best: best ?? null };
      } catch (error) {
        if (error instanceof CoppiceError) throw new ApiError(400, materials.withoutPlaces(error.message));
        throw error;
      }
    },
  }),
];
