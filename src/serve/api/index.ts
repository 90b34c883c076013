import { chat } from "./chat.js";
import { completions } from "./completions.js";
import { embeddings } from "./embeddings.js";
import type { Endpoint } from "./endpoint.js";
import { MANAGEMENT } from "./management.js";
import { countTokens, messages } from "./messages.js";
import { ollamaChat, ollamaGenerate } from "./ollama.js";
import { ollamaEmbed, ollamaEmbeddings } from "./ollama-embed.js";
import { OLLAMA_VIEWS, ollamaPull, ollamaShow } from "./ollama-models.js";
import { responses } from "./responses.js";
import { detokenize, tokenize } from "./tokens.js";
import type { View } from "./view.js";

export { parseBody, UNREADABLE, withoutNulls } from "./body.js";
export type { Endpoint, Reply, Service } from "./endpoint.js";
export type { ServiceInfo, View } from "./view.js";

/** All endpoints that are called by POST. */
export const ENDPOINTS: readonly Endpoint[] = [
  chat,
  completions,
  responses,
  embeddings,
  messages,
  countTokens,
  tokenize,
  detokenize,
  ollamaChat,
  ollamaGenerate,
  ollamaEmbed,
  ollamaEmbeddings,
  ollamaShow,
  ollamaPull,
];

/** All endpoints that are called by GET, except for metrics and pages. */
export const VIEWS: readonly View[] = [...MANAGEMENT, ...OLLAMA_VIEWS];
