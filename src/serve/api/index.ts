import { chat } from "./chat.js";
import { completions } from "./completions.js";
import { embeddings } from "./embeddings.js";
import type { Endpoint } from "./endpoint.js";
import { countTokens, messages } from "./messages.js";
import { responses } from "./responses.js";
import { detokenize, tokenize } from "./tokens.js";

export { parseBody, withoutNulls } from "./body.js";
export type { Endpoint, Reply, Service } from "./endpoint.js";

/** All that can be asked for by POST. */
export const ENDPOINTS: readonly Endpoint[] = [
  ...[chat, completions, responses, embeddings, messages, countTokens, tokenize, detokenize],
];
