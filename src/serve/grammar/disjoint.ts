import { propertySchema } from "./merge.js";
import { acceptedTypes, accepts, type Schema, writtenTypes } from "./schema.js";

/** Whether no value that is written for one of several options can match another one. */
export function areDisjoint(
  options: readonly (readonly Schema[])[],
  resolve: (schema: unknown) => readonly Schema[],
): boolean {
  const apart = (own: Schema, other: Schema, depth: number): boolean => {
    const accepted = acceptedTypes(other);
    const shared = writtenTypes(own).filter(
      (type) =>
        accepted.includes(type) ||
        (type === "integer" && accepted.includes("number")) ||
        (type === "number" && accepted.includes("integer")),
    );
    if (shared.length === 0) return true;
    if (Array.isArray(own.enum)) return own.enum.every((value) => !accepts(other, value));
    if (Array.isArray(other.enum)) return other.enum.every((value) => !accepts(own, value));
    return shared.every((type) => type === "object" && objectsApart(own, other, depth));
  };
  const objectsApart = (own: Schema, other: Schema, depth: number): boolean => {
    if (depth > 2) return false;
    const differs = (a: Schema, b: Schema) =>
      ((a.required ?? []) as string[]).some((name) => {
        const [mine, theirs] = [propertySchema(a, name), propertySchema(b, name)];
        if (theirs === false) return true;
        if (theirs === true || mine === true) return false;
        const theirOptions = resolve(theirs);
        return resolve(mine).every((one) => theirOptions.every((two) => apart(one, two, depth + 1)));
      });
    return differs(own, other) || differs(other, own);
  };
  return options.every((own, i) =>
    options.every((other, j) => i === j || own.every((one) => other.every((two) => apart(one, two, 0)))),
  );
}
