import MarkdownIt from "markdown-it";
import { useEffect, useMemo, useRef } from "preact/hooks";
import { copyText, showCopied } from "./browser.js";

// a model's HTML is shown as text, and markdown-it makes no links that could run scripts
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
// an image from elsewhere would reveal the conversation to its server
markdown.renderer.rules.image = (tokens, at) => {
  const { content = "" } = tokens[at] ?? {};
  return `<span class="quiet">[${escapeHtml(content || "picture")}]</span>`;
};

/** Copies the code that a pressed button belongs to. */
function copyCode({ target }: Event): void {
  const button = target instanceof Element ? target.closest<HTMLElement>("button[data-copy]") : null;
  const code = button?.closest(".code")?.querySelector("code");
  if (button && code) void copyText(code.textContent ?? "").then((isCopied) => showCopied(button, isCopied));
}

/** Text in Markdown, as models write it. */
export function Markdown({ text }: { text: string }) {
  const element = useRef<HTMLDivElement>(null);
  const html = useMemo(() => markdown.render(text), [text]);
  useEffect(() => {
    const { current } = element;
    current?.addEventListener("click", copyCode); // clicks on the buttons within
    return () => current?.removeEventListener("click", copyCode);
  }, []);
  // markdown-it escapes all HTML that is not its own
  return <div class="markdown" ref={element} dangerouslySetInnerHTML={{ __html: html }} />;
}
