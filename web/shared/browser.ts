/** Functions that browsers deny to pages loaded over plain HTTP from another machine, in ways that work there too. */

/** Copies text to the clipboard. @returns whether the browser allowed it */
export async function copyText(text: string): Promise<boolean> {
  try {
    if (navigator.clipboard !== undefined) {
      await navigator.clipboard.writeText(text);
      return true;
    }
  } catch {
    // denied: the older way may still be allowed
  }
  const focused = document.activeElement;
  const field = document.createElement("textarea");
  Object.assign(field, { value: text, className: "hidden", tabIndex: -1, ariaHidden: "true" });
  document.body.append(field);
  field.select();
  const isCopied = document.execCommand("copy");
  field.remove();
  if (focused instanceof HTMLElement) focused.focus();
  return isCopied;
}

/** Shows on a "Copy" button, for a moment, whether the text was copied. */
export function showCopied(button: HTMLElement, isCopied: boolean): void {
  button.textContent = isCopied ? "Copied" : "Could not copy";
  setTimeout(() => {
    button.textContent = "Copy";
  }, 2000);
}

/** A name that is unique, as it is random. */
export const uniqueName = (): string =>
  Array.from(crypto.getRandomValues(new Uint8Array(16)), (byte) => byte.toString(16).padStart(2, "0")).join("");
