import { type ComponentChildren, render } from "preact";
import { useEffect, useState } from "preact/hooks";
import { Compare } from "./pages/compare.js";
import { JobPage } from "./pages/job.js";
import { Jobs } from "./pages/jobs.js";
import { Models } from "./pages/models.js";
import { NewJob } from "./pages/new-job.js";
import { RunHere } from "./pages/run-here.js";
import { Settings } from "./pages/settings.js";
import "../shared/style.css";
import "./foundry.css";

const MENU = [
  { path: "", name: "New job" },
  { path: "jobs", name: "Jobs" },
  { path: "models", name: "Models" },
  { path: "compare", name: "Compare" },
  { path: "settings", name: "Settings" },
] as const;

/** The content and title of a page, by the parts of its address. */
function pageAt([page = "", first, second, ...more]: readonly string[]): { title: string; content: ComponentChildren } {
  if (more.length === 0) {
    if (page === "" && first === undefined) return { title: "New job", content: <NewJob /> };
    if (page === "jobs" && first === undefined) return { title: "Jobs", content: <Jobs /> };
    if (page === "jobs" && first !== undefined && second === undefined)
      return { title: "Job", content: <JobPage key={first} id={first} /> };
    if (page === "models" && first === undefined) return { title: "Models", content: <Models /> };
    if (page === "compare" && second === undefined) return { title: "Compare", content: <Compare id={first} /> };
    if (page === "run" && first !== undefined && second !== undefined)
      return { title: `Run ${second}`, content: <RunHere key={`${first}/${second}`} jobId={first} name={second} /> };
    if (page === "settings" && first === undefined) return { title: "Settings", content: <Settings /> };
  }
  return {
    title: "Not found",
    content: (
      <section>
        <h1>Page not found</h1>
        <p>
          <a href="#/">Start a job</a> or see <a href="#/jobs">all jobs</a>.
        </p>
      </section>
    ),
  };
}

/** The parts of the address after `#/`. */
const routeParts = (): string[] => {
  const parts = location.hash.replace(/^#\/?/, "").split("/");
  try {
    return parts.map(decodeURIComponent);
  } catch {
    return parts; // malformed: no page has this address
  }
};

function App() {
  const [route, setRoute] = useState(routeParts());
  useEffect(() => {
    const onChange = () => {
      setRoute(routeParts());
      window.scrollTo(0, 0);
    };
    addEventListener("hashchange", onChange);
    return () => removeEventListener("hashchange", onChange);
  }, []);
  const { title, content } = pageAt(route);
  useEffect(() => {
    document.title = `${title} · Coppice foundry`;
  }, [title]);
  return (
    <>
      <button type="button" class="skip" onClick={() => document.getElementById("main")?.focus()}>
        Skip to content
      </button>
      <header class="bar">
        <strong>Coppice foundry</strong>
        <nav aria-label="Pages">
          {MENU.map(({ path, name }) => (
            <a key={path} href={`#/${path}`} aria-current={route[0] === path ? "page" : undefined}>
              {name}
            </a>
          ))}
        </nav>
      </header>
      <main id="main" tabIndex={-1}>
        {content}
      </main>
    </>
  );
}

const root = document.getElementById("app");
if (root !== null) render(<App />, root);
