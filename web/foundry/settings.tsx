import { useState } from "preact/hooks";
import { get, send, storedKey, storeKey } from "./api.js";
import { bytes } from "./format.js";
import { messageOf, useLoaded } from "./use.js";

interface Me {
  readonly tenant: string;
  readonly name: string;
  readonly role: string;
  readonly used_bytes: number;
  readonly hub_token: boolean;
  readonly quota: { readonly max_bytes: number | null; readonly max_jobs: number | null };
}

export function Settings() {
  const { value: me, error, reload } = useLoaded(() => get<Me>("/v1/me"), []);
  const [key, setKey] = useState(storedKey());
  const [token, setToken] = useState("");
  const [said, setSaid] = useState("");
  const keepToken = () =>
    send(token === "" ? "DELETE" : "PUT", "/v1/hub-token", token === "" ? undefined : { token }).then(
      () => {
        setToken("");
        setSaid(token === "" ? "Forgotten." : "Kept, encrypted.");
        reload();
      },
      (failed: unknown) => setSaid(messageOf(failed)),
    );
  return (
    <section>
      <h1>Settings</h1>
      {error && (
        <p class="error" role="alert">
          {error}
        </p>
      )}
      {me && (
        <p>
          {me.name} of {me.tenant}, {me.role}; {bytes(me.used_bytes)} kept
          {me.quota.max_bytes === null ? "" : ` of ${bytes(me.quota.max_bytes)}`}.
        </p>
      )}
      <form
        onSubmit={(event) => {
          event.preventDefault();
          storeKey(key);
          reload();
        }}
      >
        <label>
          API key (for this tab)
          <input
            type="password"
            autocomplete="off"
            value={key}
            onInput={(event) => setKey(event.currentTarget.value)}
          />
        </label>
        <button type="submit">Use</button>
      </form>
      <form
        onSubmit={(event) => {
          event.preventDefault();
          void keepToken();
        }}
      >
        <label>
          Token of the hub{me?.hub_token ? " (one is kept; empty forgets it)" : ""}
          <input
            type="password"
            autocomplete="off"
            value={token}
            onInput={(event) => setToken(event.currentTarget.value)}
          />
        </label>
        <button type="submit">Keep</button>
      </form>
      <p role="status">{said}</p>
      <p>
        <a href="/docs">The API</a>
      </p>
    </section>
  );
}
