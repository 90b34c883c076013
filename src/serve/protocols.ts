import type { ServerEvent } from "./api/endpoint.js";
import type { ApiError } from "./errors.js";

/** How an API writes errors and streams, at all its endpoints. */
export interface Protocol {
  readonly streamType: string;
  errorBody(error: ApiError, requestId: string): object;
  /** An event of a stream as it is sent. */
  encode(event: ServerEvent): string;
  /** An error within a stream. */
  errorEvent(body: object): ServerEvent;
}

const eventText = ({ event, data }: ServerEvent): string =>
  `${event === undefined ? "" : `event: ${event}\n`}data: ${typeof data === "string" ? data : JSON.stringify(data)}\n\n`;

const openAi: Protocol = {
  streamType: "text/event-stream; charset=utf-8",
  errorBody: (error) => error.body,
  encode: eventText,
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
  encode: ({ data }) => `${JSON.stringify(data)}\n`,
  errorEvent: (data) => ({ data }),
};

/** The API of a request. @param isAnthropic whether its headers say that it is Anthropic's */
export function protocolOf(path: string, isAnthropic: boolean): Protocol {
  if (path.startsWith("/api/")) return ollama;
  if (path.startsWith("/v1/messages") || (isAnthropic && path.startsWith("/v1/models"))) return anthropic;
  return path === "/v1/responses" ? responses : openAi;
}
