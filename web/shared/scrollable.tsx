import type { HTMLAttributes } from "preact";

/** A part of a page that scrolls by itself, also by keys. What it is must be said: `aria-label`. */
export function Scrollable(attributes: HTMLAttributes<HTMLElement>) {
  // biome-ignore lint/a11y/noNoninteractiveTabindex: keys scroll only what they can reach
  return <section tabIndex={0} {...attributes} />;
}
