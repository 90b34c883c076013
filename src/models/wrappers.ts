import type { ConfigJson } from "./config.js";
import type { DimensionName } from "./dimensions.js";

/** A tensor outside the language model (an image projector) that shares an axis with it. */
export interface CarriedTensor {
  readonly pattern: RegExp;
  /** The dimension of the language model for each axis; undefined for the others. */
  readonly axes: readonly (DimensionName | undefined)[];
}

/** A multimodal model, whose language model has a configuration of its own. */
interface Wrapper {
  /** `model_type` of the whole. */
  readonly modelType: string;
  /** `model_type` of its language model, where that has none. */
  readonly language: string;
  /** Tensors outside the language model that share an axis with it. */
  readonly carried: readonly CarriedTensor[];
}

const WRAPPERS: readonly Wrapper[] = [
  {
    modelType: "gemma3",
    language: "gemma3_text",
    carried: [{ pattern: /multi_modal_projector\.mm_input_projection_weight$/, axes: [undefined, "hidden"] }],
  },
  {
    modelType: "mistral3",
    language: "mistral",
    carried: [
      { pattern: /multi_modal_projector\.linear_1\.weight$/, axes: ["hidden", undefined] },
      { pattern: /multi_modal_projector\.linear_1\.bias$/, axes: ["hidden"] },
      { pattern: /multi_modal_projector\.linear_2\.weight$/, axes: ["hidden", "hidden"] },
      { pattern: /multi_modal_projector\.linear_2\.bias$/, axes: ["hidden"] },
    ],
  },
];

const wrapperOf = (config: ConfigJson): Wrapper | undefined =>
  isObject(config.text_config) ? WRAPPERS.find(({ modelType }) => modelType === config.model_type) : undefined;

const isObject = (value: unknown): value is Record<string, unknown> =>
  typeof value === "object" && value !== null && !Array.isArray(value);

/** The configuration of the language model, which may be nested in that of a wrapper. */
export function languageConfig(config: ConfigJson): ConfigJson {
  const wrapper = wrapperOf(config);
  if (wrapper === undefined) return config;
  const text = config.text_config as Record<string, unknown>;
  const inherited =
    "tie_word_embeddings" in text || !("tie_word_embeddings" in config)
      ? {}
      : { tie_word_embeddings: config.tie_word_embeddings };
  return { model_type: wrapper.language, ...inherited, ...text };
}

/** The whole configuration with another one for the language model. */
export const withLanguageConfig = (config: ConfigJson, language: ConfigJson): ConfigJson =>
  wrapperOf(config) === undefined ? language : { ...config, text_config: language };

/** Tensors of towers beside the language model, which share no axis with it. */
const TOWER = /(^|\.)(vision_tower|vision_model|audio_tower)\./;

/** The dimension of the language model for each axis of a tensor outside it; undefined for unknown tensors. */
export const carriedAxes = (config: ConfigJson, name: string): CarriedTensor["axes"] | undefined =>
  TOWER.test(name) ? [] : wrapperOf(config)?.carried.find(({ pattern }) => pattern.test(name))?.axes;

export const wrapperTypes: readonly string[] = WRAPPERS.map(({ modelType }) => modelType);
