import { z } from "zod";

/**
 * Fields that advise a provider or label a request, by API: accepted and ignored. A field that would change the answer and is not
 * supported is refused by name instead.
 */

/** Of OpenAI's chats and completions, and of what others added to them (OpenRouter, vLLM, llama.cpp, LM Studio). */
const OPENAI = [
  "metadata",
  "store",
  "service_tier",
  "user",
  "safety_identifier",
  "moderation",
  "prompt_cache_key",
  "prompt_cache_retention",
  "prompt_cache_options",
  "prediction",
  "reasoning_effort",
  "reasoning",
  "include_reasoning",
  "thinking",
  "enable_thinking",
  "thinking_budget",
  "verbosity",
  "provider",
  "route",
  "transforms",
  "usage",
  "session_id",
  "request_id",
  "priority",
  "keep_alive",
  "ttl",
  "cache_prompt",
  "id_slot",
  "timings_per_token",
  "return_progress",
  "skip_special_tokens",
  "spaces_between_special_tokens",
] as const;

const RESPONSES = [
  "service_tier",
  "user",
  "safety_identifier",
  "moderation",
  "prompt_cache_key",
  "prompt_cache_retention",
  "prompt_cache_options",
  "reasoning",
  "store",
  "context_management",
  "max_tool_calls",
  "stream_options",
  "client_metadata",
  "provider",
] as const;

const ANTHROPIC = [
  "metadata",
  "service_tier",
  "speed",
  "thinking",
  "context_management",
  "compaction",
  "container",
  "diagnostics",
  "betas",
  "billing_policy",
  "fallbacks",
  "fallback_credit_token",
  "user_profile_id",
  "workspace_id",
] as const;

const OLLAMA = ["keep_alive", "think", "shift"] as const;
/** How a model is loaded, which is decided when the service starts. */
const OLLAMA_OPTIONS = [
  "num_ctx",
  "num_keep",
  "num_batch",
  "num_gpu",
  "main_gpu",
  "num_thread",
  "num_gqa",
  "use_mmap",
  "use_mlock",
  "low_vram",
  "f16_kv",
  "logits_all",
  "vocab_only",
  "numa",
  "embedding_only",
  "rope_frequency_base",
  "rope_frequency_scale",
  "mirostat_eta",
  "mirostat_tau",
  "penalize_newline",
  "draft_num_predict",
] as const;

/** Fields of a provider's answer, which clients send back with it. */
const OPENAI_ANSWER = [
  "annotations",
  "refusal",
  "parsed",
  "reasoning",
  "reasoning_content",
  "reasoning_details",
  "reasoning_text",
  "reasoning_opaque",
  "reasoning_signature",
  "thinking",
  "thinking_blocks",
  "signature",
  "provider_specific_fields",
  "extra_content",
  "images",
  "id",
  "created",
  "model",
  "phase",
] as const;

/** Of parts of messages, tools and calls. */
const PARTS = [
  "annotations",
  "citations",
  "logprobs",
  "parsed",
  "id",
  "index",
  "signature",
  "extra_content",
  "provider_specific_fields",
  "prompt_cache_breakpoint",
] as const;

const ANTHROPIC_TOOLS = ["defer_loading", "allowed_callers", "input_examples", "eager_input_streaming"] as const;

/** All hints, by what they are fields of, for the documentation. */
export const HINTS: Readonly<Record<string, readonly string[]>> = {
  "OpenAI's chats, completions, embeddings": OPENAI,
  "OpenAI's responses": RESPONSES,
  "Anthropic's messages": ANTHROPIC,
  "Anthropic's tools": ANTHROPIC_TOOLS,
  "messages of history": OPENAI_ANSWER,
  "parts of messages, calls": PARTS,
  "Ollama's chats, texts": OLLAMA,
  "Ollama's options": OLLAMA_OPTIONS,
};

type HintFields<Names extends readonly string[]> = Record<Names[number], z.ZodOptional<z.ZodUnknown>>;

/** Optional fields of any value. @param description for the documentation */
const fields = <const Names extends readonly string[]>(names: Names, description: string): HintFields<Names> =>
  Object.fromEntries(names.map((name) => [name, z.unknown().optional().describe(description)])) as HintFields<Names>;

const HINT = "a hint: ignored";

export const openAiHints = fields(OPENAI, HINT);
export const responsesHints = fields(RESPONSES, HINT);
export const anthropicHints = fields(ANTHROPIC, HINT);
export const anthropicToolHints = fields(ANTHROPIC_TOOLS, HINT);
export const ollamaHints = fields(OLLAMA, HINT);
export const ollamaOptionHints = fields(OLLAMA_OPTIONS, HINT);
export const outputConfigHints = fields(["effort", "task_budget"], HINT);
export const textConfigHints = fields(["verbosity"], HINT);
export const streamHints = fields(["include_obfuscation", "continuous_usage_stats"], HINT);
export const answerHints = fields(OPENAI_ANSWER, "part of an earlier answer: ignored");
export const partHints = fields(PARTS, "part of an earlier answer: ignored");
