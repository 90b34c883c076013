import { CoppiceError } from "../system/errors.js";

/** An error that is sent to the client. */
export class ApiError extends CoppiceError {
  override readonly name = "ApiError";

  constructor(
    readonly status: 400 | 401 | 403 | 404 | 405 | 408 | 409 | 413 | 415 | 416 | 429 | 500 | 503,
    message: string,
    readonly details: {
      /** The field that is wrong. */
      readonly param?: string | undefined;
      readonly code?: string | undefined;
      /** Seconds after which to try again. */
      readonly retryAfter?: number | undefined;
      /** Of a range that a file does not have. */
      readonly contentRange?: string | undefined;
      /** The message in the words of Anthropic's API, where clients look for these. */
      readonly anthropicMessage?: string | undefined;
      /** The reason, for the log only. */
      readonly cause?: unknown;
    } = {},
  ) {
    super(message);
  }

  /** In the form of OpenAI's API. */
  get body() {
    const { param = null, code = null } = this.details;
    return { error: { message: this.message, type: TYPES[this.status], param, code } };
  }

  /** In the form of Anthropic's API. */
  get anthropicBody() {
    const message = this.details.anthropicMessage ?? this.message;
    return { type: "error" as const, error: { type: ANTHROPIC_TYPES[this.status], message } };
  }
}

/**
 * The error for a prompt that leaves no room for an answer, in the words by which clients see that they must shorten it.
 * @param limit tokens of prompt and answer
 */
export function contextExceeded(tokens: number, limit: number, param: string): ApiError {
  const message = `This model's maximum context length is ${limit} tokens. However, the request has ${tokens} tokens and needs room for an answer. Please reduce its length.`;
  const anthropicMessage = `prompt is too long: ${tokens} tokens > ${Math.min(limit, tokens - 1)} maximum`;
  return new ApiError(400, message, { param, code: "context_length_exceeded", anthropicMessage });
}

const TYPES: Readonly<Record<ApiError["status"], string>> = {
  400: "invalid_request_error",
  401: "authentication_error",
  403: "permission_error",
  404: "not_found_error",
  405: "invalid_request_error",
  408: "timeout_error",
  409: "conflict_error",
  413: "invalid_request_error",
  415: "invalid_request_error",
  416: "invalid_request_error",
  429: "rate_limit_error",
  500: "server_error",
  503: "server_error",
};

const ANTHROPIC_TYPES: typeof TYPES = {
  ...TYPES,
  413: "request_too_large",
  500: "api_error",
  503: "overloaded_error",
};
