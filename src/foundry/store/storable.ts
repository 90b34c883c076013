/** Text as PostgreSQL can store it: it takes neither the character U+0000 nor halves of surrogate pairs, which become U+FFFD. */
export const storedText = (text: string): string => Buffer.from(text).toString().replaceAll("\0", "\ufffd");

/** A value as JSON that PostgreSQL can store; see {@link storedText}. */
export const storedJson = (value: unknown): string =>
  JSON.stringify(value, (_, inner: unknown) => {
    if (typeof inner === "string") return storedText(inner);
    if (typeof inner !== "object" || inner === null || Array.isArray(inner)) return inner;
    return Object.fromEntries(Object.entries(inner).map(([key, of]) => [storedText(key), of]));
  });
