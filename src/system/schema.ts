import type { z } from "zod";

const shown = (value: unknown): string => JSON.stringify(value)?.slice(0, 80) ?? String(value);

/** Says what is wrong with a value that a schema refused, for example `has no hidden_size` or `hidden_size is "x", not a number`. */
export function describeSchemaError(error: z.ZodError, value: unknown): string {
  const [issue] = error.issues;
  const path = issue?.path ?? [];
  const name = path.join(".");
  let found = value;
  for (const key of path) found = (found as Readonly<Record<PropertyKey, unknown>> | undefined)?.[key];
  const within = name === "" ? "it" : name;
  if (issue?.code === "unrecognized_keys") return `${within} has ${issue.keys.join(", ")}, which is not known`;
  if (name !== "" && found === undefined) return `has no ${name}`;
  const what = `${within} is ${shown(found)}`;
  if (issue?.code === "invalid_value") return `${what}; it must be ${issue.values.map(shown).join(" or ")}`;
  if (issue?.code === "invalid_type")
    return `${what}, not ${/^[aeio]/.test(issue.expected) ? "an" : "a"} ${issue.expected}`;
  if (issue?.code === "too_small")
    return `${what}; it must be ${issue.inclusive === false ? "more than" : "at least"} ${issue.minimum}`;
  if (issue?.code === "too_big")
    return `${what}; it must be ${issue.inclusive === false ? "less than" : "at most"} ${issue.maximum}`;
  return `${what}, which is not valid`;
}
