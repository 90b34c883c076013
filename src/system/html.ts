/** Escapes text for use in HTML elements and attributes. */
export const escapeHtml = (text: string): string =>
  text.replace(/[&<>"]/g, (c) => ({ "&": "&amp;", "<": "&lt;", ">": "&gt;", '"': "&quot;" })[c] ?? c);

/** A table in HTML, in a container that scrolls and can be scrolled by keyboard. Cells are escaped. */
export const table = (head: readonly string[], rows: readonly (readonly string[])[]): string =>
  `<div class="scroll" tabindex="0"><table><thead><tr>${head.map((cell) => `<th>${escapeHtml(cell)}</th>`).join("")}</tr></thead><tbody>${rows
    .map((row) => `<tr>${row.map((cell) => `<td>${escapeHtml(cell)}</td>`).join("")}</tr>`)
    .join("")}</tbody></table></div>`;

/** A self-contained HTML page. @param sections HTML, used as it is */
export const page = (title: string, sections: readonly string[]): string =>
  `<!doctype html><html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1"><link rel="icon" href="data:,"><title>${escapeHtml(title)}</title><style>${STYLE}</style><main>${sections.join("\n")}</main></html>\n`;

const STYLE = `:root{color-scheme:light dark;--line:#2a7de1;--soft:#8886}body{font:15px/1.5 system-ui,sans-serif;margin:0;color:light-dark(#1b1e24,#e7e9ee);background:light-dark(#fff,#16181c)}
main{max-width:52rem;margin:2rem auto;padding:0 1rem}h1{font-size:1.4rem}h2{font-size:1.1rem;margin-top:2rem}
.scroll{overflow-x:auto}a{color:light-dark(#1a56b0,#8fb8f5)}table{border-collapse:collapse;width:100%}th,td{text-align:right;padding:.3rem .6rem;border-bottom:1px solid var(--soft)}
th:first-child,td:first-child{text-align:left}svg{width:100%;height:auto}text{font:11px system-ui,sans-serif;fill:currentColor}
.grid{stroke:var(--soft);stroke-width:1}.loss{fill:none;stroke:var(--line);stroke-width:1.5}.validation{fill:#d9480f}
.before{fill:var(--soft)}.after{fill:var(--line)}`;
