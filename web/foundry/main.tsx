import { render } from "preact";
import { useEffect, useState } from "preact/hooks";
import { Compare } from "./compare.js";
import { JobPage, Jobs } from "./jobs.js";
import { Models } from "./models.js";
import { NewJob } from "./new-job.js";
import { RunHere } from "./run-here.js";
import { Settings } from "./settings.js";
import "./style.css";

const PAGES = [
  { path: "", name: "New job" },
  { path: "jobs", name: "Jobs" },
  { path: "models", name: "Models" },
  { path: "compare", name: "Compare" },
  { path: "settings", name: "Settings" },
];

const placeOf = (): string[] => location.hash.replace(/^#\/?/, "").split("/").map(decodeURIComponent);

function App() {
  const [place, setPlace] = useState(placeOf());
  useEffect(() => {
    const moved = () => {
      setPlace(placeOf());
      window.scrollTo(0, 0);
    };
    addEventListener("hashchange", moved);
    return () => removeEventListener("hashchange", moved);
  }, []);
  const [page = "", first, second] = place;
  return (
    <>
      <button type="button" class="skip" onClick={() => document.getElementById("main")?.focus()}>
        Skip to the content
      </button>
      <header>
        <strong>Coppice foundry</strong>
        <nav aria-label="Pages">
          {PAGES.map(({ path, name }) => (
            <a key={path} href={`#/${path}`} aria-current={page === path ? "page" : undefined}>
              {name}
            </a>
          ))}
        </nav>
      </header>
      <main id="main" tabIndex={-1}>
        {page === "jobs" ? first ? <JobPage key={first} id={first} /> : <Jobs /> : null}
        {page === "models" && <Models />}
        {page === "compare" && <Compare id={first} />}
        {page === "run" && first && second && <RunHere jobId={first} name={second} />}
        {page === "settings" && <Settings />}
        {page === "" && <NewJob />}
      </main>
    </>
  );
}

const root = document.getElementById("app");
if (root !== null) render(<App />, root);
