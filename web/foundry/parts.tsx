import type { ComponentChildren } from "preact";
import { Scrollable } from "../shared/scrollable.js";

/** What went wrong, where it did. */
export function Problem({ children }: { children: ComponentChildren }) {
  if (children === undefined || children === null || children === "") return null;
  return (
    <p class="error" role="alert">
      {children}
    </p>
  );
}

/** A part of a page with a heading of its own. */
export function Panel({ title, children }: { title: string; children: ComponentChildren }) {
  const id = `panel-${title.toLowerCase().replace(/\W+/g, "-")}`;
  return (
    <section class="panel" aria-labelledby={id}>
      <h2 id={id}>{title}</h2>
      {children}
    </section>
  );
}

/** A table that scrolls within its place, also by keys. */
export function Table({
  label,
  head,
  rows,
}: {
  label: string;
  head: readonly string[];
  rows: readonly (readonly ComponentChildren[])[];
}) {
  return (
    <Scrollable class="scroll" aria-label={label}>
      <table>
        <thead>
          <tr>
            {head.map((title, i) =>
              title === "" ? (
                <td key={i} />
              ) : (
                <th key={i} scope="col">
                  {title}
                </th>
              ),
            )}
          </tr>
        </thead>
        <tbody>
          {rows.map(([first, ...others], i) => (
            <tr key={i}>
              <th scope="row">{first}</th>
              {others.map((cell, at) => (
                <td key={at}>{cell}</td>
              ))}
            </tr>
          ))}
        </tbody>
      </table>
    </Scrollable>
  );
}
