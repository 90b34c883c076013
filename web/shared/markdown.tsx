import MarkdownIt from "markdown-it";
import { useEffect, useMemo, useRef } from "preact/hooks";
import { copyText, sayCopied } from "./browser.js";

// HTML of the model's is shown as text, and links that could run something are none (markdown-it's own checks)
const markdown = new MarkdownIt({ html: false, linkify: true, breaks: true });
const { escapeHtml } = markdown.utils;

markdown.renderer.rules.fence = (tokens, at) => {
  const { content = "", info = "" } = tokens[at] ?? {};
  const language = escapeHtml(info.trim().split(/\s+/)[0] ?? "");
  return `<div class="code"><div class="code-head"><span>${language}</span><button type="button" data-copy>Copy</button></div><pre tabindex="0"><code>${escapeHtml(content)}</code></pre></div>`;
};
markdown.renderer.rules.link_open = (tokens, at, options, _, self) => {
  tokens[at]?.attrSet("target", "_blank");
  tokens[at]?.attrSet("rel", "noopener noreferrer");
  return self.renderToken(tokens, at, options);
};
// pictures from elsewhere would tell others what is talked about
markdown.renderer.rules.image = (tokens, at) => {
  const { content = "" } = tokens[at] ?? {};
  return `<span class="quiet">[${escapeHtml(content || "picture")}]</span>`;
};

/** Copies the code beside the button that was pressed, and says so for a moment. */
function copyCode({ target }: Event): void {
  const button = target instanceof Element ? target.closest<HTMLElement>("button[data-copy]") : null;
  const code = button?.closest(".code")?.querySelector("code");
  if (button && code) void copyText(code.textContent ?? "").then((isCopied) => sayCopied(button, isCopied));
}

/** A text in Markdown, as models write it. */
export function Markdown({ text }: { text: string }) {
  const place = useRef<HTMLDivElement>(null);
  const html = useMemo(() => markdown.render(text), [text]);
  useEffect(() => {
    const at = place.current;
    at?.addEventListener("click", copyCode); // of the buttons within
    return () => at?.removeEventListener("click", copyCode);
  }, []);
  // markdown-it escapes what it does not make itself
  return <div class="markdown" ref={place} dangerouslySetInnerHTML={{ __html: html }} />;
}
