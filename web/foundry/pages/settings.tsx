import { useState } from "preact/hooks";
import { messageOf, useLoaded } from "../../shared/use.js";
import { get, type Me, Refused, send, storedKey, storeKey } from "../api.js";
import { bytes } from "../format.js";
import { Panel, Problem } from "../parts.js";

export function Settings() {
  const { value: me, error, reload } = useLoaded(() => get<Me>("/v1/me"), []);
  return (
    <section>
      <h1>Settings</h1>
      <Panel title="Who you are here">
        {me ? (
          <p>
            {me.name} of {me.tenant}, {me.role}; {bytes(me.used_bytes)} kept
            {me.quota.max_bytes === null ? "" : ` of ${bytes(me.quota.max_bytes)}`}.
          </p>
        ) : (
          <Problem>{error}</Problem>
        )}
        <KeyForm onKept={reload} />
      </Panel>
      {me && (
        <Panel title="The hub">
          <TokenForm isKept={me.hub_token} onKept={reload} />
        </Panel>
      )}
      <p>
        <a href="/docs">The API</a>
      </p>
    </section>
  );
}

/** A key is tried before it is kept. */
function KeyForm({ onKept }: { onKept: () => void }) {
  const [key, setKey] = useState(storedKey());
  const [said, setSaid] = useState("");
  const [problem, setProblem] = useState("");
  const use = async () => {
    const before = storedKey();
    storeKey(key.trim());
    setSaid("");
    setProblem("");
    try {
      const me = await get<Me>("/v1/me");
      setSaid(key.trim() === "" ? "This tab has no key now." : `You are ${me.name} of ${me.tenant}.`);
      onKept();
    } catch (failed) {
      storeKey(before);
      setProblem(
        failed instanceof Refused && failed.status === 401 && key.trim() !== ""
          ? "That key is not known here: coppice foundry keys add NAME makes one."
          : messageOf(failed),
      );
    }
  };
  return (
    <form
      onSubmit={(event) => {
        event.preventDefault();
        void use();
      }}
    >
      <label>
        API key (for this tab)
        <input type="password" autocomplete="off" value={key} onInput={(event) => setKey(event.currentTarget.value)} />
      </label>
      <button type="submit">Use</button>
      <p role="status">{said}</p>
      <Problem>{problem}</Problem>
    </form>
  );
}

function TokenForm({ isKept, onKept }: { isKept: boolean; onKept: () => void }) {
  const [token, setToken] = useState("");
  const [said, setSaid] = useState("");
  const [problem, setProblem] = useState("");
  const keep = () =>
    send(token === "" ? "DELETE" : "PUT", "/v1/hub-token", token === "" ? undefined : { token }).then(
      () => {
        setToken("");
        setProblem("");
        setSaid(token === "" ? "Forgotten." : "Kept, encrypted.");
        onKept();
      },
      (failed: unknown) => {
        setSaid("");
        setProblem(messageOf(failed));
      },
    );
  return (
    <form
      onSubmit={(event) => {
        event.preventDefault();
        void keep();
      }}
    >
      <label>
        Token of the hub{isKept ? " (one is kept; empty forgets it)" : ""}
        <input
          type="password"
          autocomplete="off"
          value={token}
          onInput={(event) => setToken(event.currentTarget.value)}
        />
      </label>
      <button type="submit">Keep</button>
      <p role="status">{said}</p>
      <Problem>{problem}</Problem>
    </form>
  );
}
