/**
 * A benchmark of one's own: what has the hero of a story lost? The module's default export is the task, and
 * every command that evaluates takes the file.
 *
 *     npx coppice evaluate examples/tiny-teacher --tasks examples/own-task.ts
 *
 * Benchmarks that need no code can be JSON files of templates: see docs/evaluation.md.
 */
import { fileURLToPath } from "node:url";
import { choices, multipleChoice } from "coppice/evaluate";
import { z } from "zod";

/** A row of the data: what is not like this is refused with the row's number and the column's name. */
const row = z.object({ story: z.string(), things: z.array(z.string()).length(3), answer: z.number().int() });

export default multipleChoice({
  name: "lost_thing",
  version: 1, // counted up when scores are no longer comparable with earlier ones
  dataset: { repo: fileURLToPath(new URL("own-task.jsonl", import.meta.url)) }, // or `organization/name` on the hub
  splits: { test: "test" },
  schema: row,
  // one prompt, three continuations: the one that the model finds most probable is its choice
  options: ({ story, things }) => choices(story, things),
  right: ({ answer }) => [answer],
  metrics: ["acc"],
});
