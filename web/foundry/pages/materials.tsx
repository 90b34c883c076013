import { useState } from "preact/hooks";
import { messageOf, useLoaded } from "../../shared/use.js";
import { type Dataset, list, type Model, send, upload } from "../api.js";
import { bytes, count } from "../format.js";
import { Problem } from "../parts.js";

/** Something that takes time, and what is said of it meanwhile and when it fails. @param onBusy whether it is under way */
function useWork(onBusy: (isBusy: boolean) => void) {
  const [busy, setBusy] = useState("");
  const [problem, setProblem] = useState("");
  const doing = async (what: string, work: () => Promise<void>) => {
    if (busy !== "") return;
    setBusy(what);
    onBusy(true);
    setProblem("");
    try {
      await work();
    } catch (error) {
      setProblem(messageOf(error));
    } finally {
      setBusy("");
      onBusy(false);
    }
  };
  return { busy, problem, doing };
}

/** Sends the files of a model. Of one that is refused nothing stays. */
async function sendModel(files: readonly File[]): Promise<Model> {
  const named = files.find((file) => file.name.endsWith(".gguf"))?.name ?? files[0]?.webkitRelativePath.split("/")[0];
  const model = await send<Model>("POST", "/v1/models", { name: named || "Model" });
  try {
    for (const file of files)
      await upload("PUT", `/v1/models/${model.id}/files/${encodeURIComponent(file.name)}`, file);
    await send("POST", `/v1/models/${model.id}/complete`);
    return model;
  } catch (error) {
    await send("DELETE", `/v1/models/${model.id}`).catch(() => {});
    throw error;
  }
}

/** Which model: of the library, sent from here, or fetched from the hub. */
export function ModelField({
  models,
  selected,
  onSelect,
  onAdded,
  onBusy,
}: {
  models: readonly Model[];
  selected: string | undefined;
  onSelect: (id: string) => void;
  onAdded: () => void;
  onBusy: (isBusy: boolean) => void;
}) {
  const { busy, problem, doing } = useWork(onBusy);
  const [hubId, setHubId] = useState<string>();
  const added = ({ id }: Model) => {
    onAdded();
    onSelect(id);
  };
  const addFromHub = async () => {
    if (hubId === undefined || hubId.trim() === "") return;
    await doing("Adding …", async () => {
      added(await send<Model>("POST", "/v1/models", { hub_id: hubId.trim() }));
      setHubId(undefined);
    });
  };
  return (
    <>
      <label>
        Model
        <select value={selected} onChange={(event) => onSelect(event.currentTarget.value)}>
          {models.map((one) => (
            <option key={one.id} value={one.id}>
              {one.name} {one.parameters === null ? "" : `(${count(one.parameters)})`}
            </option>
          ))}
        </select>
      </label>
      <div class="row">
        <label class="button">
          Send a model
          <input
            type="file"
            multiple
            class="hidden"
            aria-label="Send a model"
            onChange={({ currentTarget }) => {
              const files = [...(currentTarget.files ?? [])];
              currentTarget.value = ""; // the same file, mended, is chosen anew
              if (files.length > 0) void doing("Sending the model …", async () => added(await sendModel(files)));
            }}
          />
        </label>
        <button
          type="button"
          aria-expanded={hubId !== undefined}
          onClick={() => setHubId(hubId === undefined ? "" : undefined)}
        >
          From the hub
        </button>
      </div>
      {hubId !== undefined && (
        <div class="row nowrap">
          <label>
            Model on the hub
            <input
              type="text"
              placeholder="organisation/name"
              value={hubId}
              onInput={(event) => setHubId(event.currentTarget.value)}
              onKeyDown={(event) => {
                if (event.key !== "Enter") return;
                event.preventDefault(); // of the form that this stands in
                void addFromHub();
              }}
            />
          </label>
          <button type="button" disabled={hubId.trim() === "" || busy !== ""} onClick={() => void addFromHub()}>
            Add
          </button>
        </div>
      )}
      <p class="quiet status" role="status">
        {busy}
      </p>
      <Problem>{problem}</Problem>
    </>
  );
}

/** What the smaller model learns from. */
export function DataField({
  selected,
  onSelect,
  onBusy,
}: {
  selected: string;
  onSelect: (id: string) => void;
  onBusy: (isBusy: boolean) => void;
}) {
  const datasets = useLoaded(() => list<Dataset>("/v1/datasets"), []);
  const { busy, problem, doing } = useWork(onBusy);
  const sendData = (file: File) =>
    doing(`Sending ${file.name} …`, async () => {
      const made = await upload<Dataset>("POST", `/v1/datasets?name=${encodeURIComponent(file.name)}`, file);
      datasets.reload();
      onSelect(made.id);
    });
  return (
    <>
      <label>
        Data
        <select value={selected} onChange={(event) => onSelect(event.currentTarget.value)}>
          <option value="">Embedded stories</option>
          {(datasets.value ?? []).map((one) => (
            <option key={one.id} value={one.id}>
              {one.name} ({bytes(one.bytes)})
            </option>
          ))}
        </select>
      </label>
      <div class="row">
        <label class="button">
          Send data
          <input
            type="file"
            class="hidden"
            aria-label="Send data"
            accept=".txt,.jsonl,.json,.parquet,.gz"
            onChange={({ currentTarget }) => {
              const file = currentTarget.files?.[0];
              currentTarget.value = "";
              if (file !== undefined) void sendData(file);
            }}
          />
        </label>
        <span class="quiet" role="status">
          {busy}
        </span>
      </div>
      <Problem>{problem || datasets.error}</Problem>
    </>
  );
}
