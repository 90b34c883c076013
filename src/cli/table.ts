import Table from "cli-table3";

/** A table for the terminal. Columns after the first are right-aligned. */
export function table(head: readonly string[], rows: readonly (readonly string[])[]): string {
  const drawn = new Table({
    head: [...head],
    colAligns: head.map((_, i) => (i === 0 ? "left" : "right")),
    style: { head: [], border: [] },
  });
  for (const row of rows) drawn.push([...row]);
  return drawn.toString();
}

/** Notes about what llama.cpp will do differently from the model, a line each. */
export const renderNotes = (notes: readonly string[]): string[] => notes.map((note) => `note: ${note}`);
