export { ChatTemplate, ConversationError, type TemplateMessage, type TemplateOptions } from "./chat-template.js";
export {
  DOCUMENT_DEFAULTS,
  type Document,
  type DocumentOptions,
  findDataFiles,
  type OnNote,
  readDocuments,
} from "./documents.js";
export { endingOf, ROW_ENDINGS, type Row, readRows } from "./rows.js";
export { type Agreement, agreeingTokens, type TokenizerSide } from "./same-tokenizer.js";
export { type Batch, checkVocabulary, Sequences, TrainingOrder } from "./sequences.js";
export { type SpecialToken, type TextTokenizer, Tokenizer } from "./tokenizer.js";
export { type Corpus, type CorpusOptions, openCorpus, type StreamFiles, TokenStream } from "./tokens.js";
