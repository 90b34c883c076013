import { z } from "zod";
import { ApiError } from "./errors.js";

/** What the API takes. Every field is named here; one that is not is refused. */

const MOST_STOPS = 16;
const MOST_TEXT = 4 << 20;

const text = z.string().max(MOST_TEXT);
const tokenIds = z
  .array(z.number().int().min(0))
  .min(1)
  .max(1 << 20);

const sampling = {
  model: z.string().max(256).optional(),
  temperature: z.number().min(0).max(2).default(1),
  top_p: z.number().gt(0).max(1).nullish(),
  top_k: z.number().int().min(0).nullish(),
  min_p: z.number().min(0).max(1).nullish(),
  seed: z.number().int().nullish(),
  presence_penalty: z.number().min(-2).max(2).nullish(),
  frequency_penalty: z.number().min(-2).max(2).nullish(),
  logit_bias: z.record(z.string().regex(/^\d+$/), z.number().min(-100).max(100)).nullish(),
  stop: z.union([text, z.array(text).max(MOST_STOPS)]).nullish(),
  n: z.number().int().min(1).max(16).default(1),
  stream: z.boolean().default(false),
  stream_options: z.strictObject({ include_usage: z.boolean().optional() }).nullish(),
  user: z.string().max(512).optional(),
};

export const completionSchema = z.strictObject({
  ...sampling,
  prompt: z.union([text, z.array(text).min(1).max(64), tokenIds]),
  max_tokens: z.number().int().min(0).nullish(),
  logprobs: z.number().int().min(0).max(20).nullish(),
  echo: z.boolean().default(false),
});

const part = z.strictObject({ type: z.literal("text"), text });
const content = z.union([text, z.array(part).min(1)]);

const message = z.discriminatedUnion("role", [
  z.strictObject({ role: z.literal("system"), content, name: z.string().optional() }),
  z.strictObject({ role: z.literal("developer"), content, name: z.string().optional() }),
  z.strictObject({ role: z.literal("user"), content, name: z.string().optional() }),
  z.strictObject({ role: z.literal("assistant"), content, name: z.string().optional() }),
]);

export const chatSchema = z.strictObject({
  ...sampling,
  messages: z.array(message).min(1).max(4096),
  max_tokens: z.number().int().min(1).nullish(),
  max_completion_tokens: z.number().int().min(1).nullish(),
  logprobs: z.boolean().nullish(),
  top_logprobs: z.number().int().min(0).max(20).nullish(),
  response_format: z
    .discriminatedUnion("type", [
      z.strictObject({ type: z.literal("text") }),
      z.strictObject({ type: z.literal("json_object") }),
      z.strictObject({
        type: z.literal("json_schema"),
        json_schema: z.strictObject({
          name: z.string(),
          description: z.string().optional(),
          strict: z.boolean().nullish(),
          schema: z.record(z.string(), z.unknown()),
        }),
      }),
    ])
    .nullish(),
});

export const tokenizeSchema = z.strictObject({ model: z.string().max(256).optional(), prompt: text });
export const detokenizeSchema = z.strictObject({ model: z.string().max(256).optional(), tokens: tokenIds });

export type CompletionBody = z.infer<typeof completionSchema>;
export type ChatBody = z.infer<typeof chatSchema>;

/** @throws ApiError 400 naming the field */
export function parseBody<T>(schema: z.ZodType<T>, body: unknown): T {
  const parsed = schema.safeParse(body);
  if (parsed.success) return parsed.data;
  const issue = parsed.error.issues[0];
  if (issue?.code === "unrecognized_keys") {
    const param = [...issue.path, issue.keys[0]].join(".");
    throw new ApiError(400, `the field ${param} is not supported`, { param, code: "unsupported_parameter" });
  }
  const param = issue?.path.join(".") ?? "";
  throw new ApiError(400, `${param === "" ? "the body" : param}: ${issue?.message ?? "invalid"}`, {
    ...{ param, code: "invalid_value" },
  });
}
