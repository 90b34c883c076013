import type { ServerEvent } from "./api/endpoint.js";
import type { ApiError } from "./errors.js";

/** How an API tells errors and streams, whichever endpoint it is. */
export interface Protocol {
  readonly streamType: string;
  errorBody(error: ApiError, requestId: string): object;
  /** Something of a stream as it is sent. */
  written(event: ServerEvent): string;
  /** An error in the midst of a stream. */
  errorEvent(body: object): ServerEvent;
}

const eventText = ({ event, data }: ServerEvent): string =>
  `${event === undefined ? "" : `event: ${event}\n`}data: ${typeof data === "string" ? data : JSON.stringify(data)}\n\n`;

const openAi: Protocol = {
  streamType: "text/event-stream; charset=utf-8",
  errorBody: (error) => error.body,
  written: eventText,
  errorEvent: (data) => ({ data }),
};

const responses: Protocol = {
  ...openAi,
  errorEvent: (body) => ({ event: "error", data: { type: "error", ...body } }),
};

const anthropic: Protocol = {
  ...responses,
  errorBody: (error, requestId) => ({ ...error.anthropicBody, request_id: requestId }),
};

const ollama: Protocol = {
  streamType: "application/x-ndjson",
  // clients look for "not found"
  errorBody: ({ message, details }) => ({
    error: details.code === "model_not_found" ? `model not found: ${message}` : message,
  }),
  written: ({ data }) => `${JSON.stringify(data)}\n`,
  errorEvent: (data) => ({ data }),
};

/** The API that a request means. @param isAnthropic whether its headers say that it is Anthropic's */
export function protocolOf(path: string, isAnthropic: boolean): Protocol {
  if (path.startsWith("/api/")) return ollama;
  if (path.startsWith("/v1/messages") || (isAnthropic && path.startsWith("/v1/models"))) return anthropic;
  return path === "/v1/responses" ? responses : openAi;
}
