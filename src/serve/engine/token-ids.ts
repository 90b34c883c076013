import type { Token } from "node-llama-cpp";
import { ApiError } from "../errors.js";

/**
 * Ids as tokens: llama.cpp must never see one outside its vocabulary.
 * @param param the request's field that the ids come from
 * @throws ApiError 400 for an id outside the vocabulary
 */
export function checkTokenIds(ids: readonly number[], vocabSize: number, param: string): Token[] {
  const outside = ids.find((id) => id >= vocabSize);
  if (outside !== undefined)
    throw new ApiError(400, `${param}: ${outside} is not a token id, the model has ${vocabSize} tokens`, { param });
  return ids as Token[];
}
