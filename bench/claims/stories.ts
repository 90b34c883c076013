import path from "node:path";

const shared = path.resolve(import.meta.dirname, "../../../shared/data");

/** The model that claims are tested on by default, stories sampled from it, and real ones that nothing is trained on. */
export const STORIES = {
  model: path.join(shared, "models/stories260K"),
  data: path.join(shared, "corpora/stories260K-sampled-train.jsonl.gz"),
  validation: path.join(shared, "corpora/tinystories-excerpt.txt.gz"),
};

/** Text that the model has never seen the like of. */
export const SHAKESPEARE = path.join(shared, "corpora/tinyshakespeare.txt.gz");
