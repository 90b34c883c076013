import type { HTMLAttributes } from "preact";

/** A part of a page that scrolls by itself, also by keyboard. It needs an `aria-label`. */
export function Scrollable(attributes: HTMLAttributes<HTMLElement>) {
  // biome-ignore lint/a11y/noNoninteractiveTabindex: the keyboard scrolls only what has the focus
  return <section tabIndex={0} {...attributes} />;
}
