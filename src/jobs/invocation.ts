import { z } from "zod";

/** Where the value of an option came from, where it is not the default. */
export const OPTION_SOURCES = ["command line", "environment", "recipe"] as const;
export type OptionSource = (typeof OPTION_SOURCES)[number];

/** The command line that started a job. */
export const invocationSchema = z.object({
  /** The words after `coppice`, with all options that were given, whatever their source. */
  words: z.array(z.string()),
  /** The working directory: relative paths begin there. */
  directory: z.string(),
  /** By an option's name in camel case; an option that is not listed has its default. */
  sources: z.record(z.string(), z.enum(OPTION_SOURCES)),
});
export type Invocation = Readonly<z.infer<typeof invocationSchema>>;

/** What a run's directory records about how it was started; nothing depends on it. */
export const originSchema = z.object({
  version: z.string(),
  startedAt: z.string(),
  invocation: invocationSchema.optional(),
});
export type Origin = Readonly<z.infer<typeof originSchema>>;
