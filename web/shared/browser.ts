/** What browsers keep from pages that came over plain HTTP from another machine, done in ways that work there too. */

/** Copies a text. @returns whether the browser let it */
export async function copyText(text: string): Promise<boolean> {
  try {
    if (navigator.clipboard !== undefined) {
      await navigator.clipboard.writeText(text);
      return true;
    }
  } catch {
    // refused: the older way may still be allowed
  }
  const before = document.activeElement;
  const field = document.createElement("textarea");
  Object.assign(field, { value: text, className: "hidden", tabIndex: -1, ariaHidden: "true" });
  document.body.append(field);
  field.select();
  const isCopied = document.execCommand("copy");
  field.remove();
  if (before instanceof HTMLElement) before.focus();
  return isCopied;
}

/** Says on a button, for a moment, what came of copying. */
export function sayCopied(button: HTMLElement, isCopied: boolean): void {
  button.textContent = isCopied ? "Copied" : "Not allowed here";
  setTimeout(() => {
    button.textContent = "Copy";
  }, 2000);
}

/** A name that nobody else has. */
export const randomName = (): string =>
  Array.from(crypto.getRandomValues(new Uint8Array(16)), (byte) => byte.toString(16).padStart(2, "0")).join("");
