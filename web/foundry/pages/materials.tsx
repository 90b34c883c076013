import { useState } from "preact/hooks";
import { Problem, Select } from "../../shared/parts.js";
import { messageOf, useLoaded } from "../../shared/use.js";
import { type Dataset, list, type Model, send, upload } from "../api.js";
import { bytes, count } from "../format.js";

/** One task at a time, such as an upload: what is under way, and why the last one failed. */
function useTask(onBusy: (isBusy: boolean) => void) {
  const [busy, setBusy] = useState("");
  const [problem, setProblem] = useState("");
  const run = async (label: string, task: () => Promise<void>) => {
    if (busy !== "") return;
    setBusy(label);
    onBusy(true);
    setProblem("");
    try {
      await task();
    } catch (error) {
      setProblem(messageOf(error));
    } finally {
      setBusy("");
      onBusy(false);
    }
  };
  return { busy, problem, run };
}

/** Uploads the files of a model. A model that is refused is deleted again. */
async function uploadModel(files: readonly File[]): Promise<Model> {
  const name = files.find((file) => file.name.endsWith(".gguf"))?.name ?? files[0]?.webkitRelativePath.split("/")[0];
  const model = await send<Model>("POST", "/v1/models", { name: name || "Model" });
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

/** Chooses a model of the library, or adds one by upload or from the hub. */
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
  const { busy, problem, run } = useTask(onBusy);
  const [hubId, setHubId] = useState<string>();
  const added = ({ id }: Model) => {
    onAdded();
    onSelect(id);
  };
  const addFromHub = async () => {
    if (hubId === undefined || hubId.trim() === "") return;
    await run("Adding…", async () => {
      added(await send<Model>("POST", "/v1/models", { hub_id: hubId.trim() }));
      setHubId(undefined);
    });
  };
  return (
    <>
      <Select
        label="Model"
        value={selected}
        choices={models.map(({ id, name, parameters }) => ({
          value: id,
          name: parameters === null ? name : `${name} (${count(parameters)})`,
        }))}
        onSelect={onSelect}
      />
      <div class="row">
        <UploadButton
          onFiles={(files) => void run("Uploading the model…", async () => added(await uploadModel(files)))}
        />
        <button
          type="button"
          aria-expanded={hubId !== undefined}
          onClick={() => setHubId(hubId === undefined ? "" : undefined)}
        >
          From the hub
        </button>
      </div>
      {hubId !== undefined && <HubForm id={hubId} isBusy={busy !== ""} onInput={setHubId} onAdd={addFromHub} />}
      <p class="quiet status" role="status">
        {busy}
      </p>
      <Problem>{problem}</Problem>
    </>
  );
}

/** Chooses the files of a model. */
function UploadButton({ onFiles }: { onFiles: (files: File[]) => void }) {
  return (
    <label class="button">
      Upload a model
      <input
        type="file"
        multiple
        class="hidden"
        aria-label="Upload a model"
        onChange={({ currentTarget }) => {
          const files = [...(currentTarget.files ?? [])];
          currentTarget.value = ""; // so that the same file can be chosen again
          if (files.length > 0) onFiles(files);
        }}
      />
    </label>
  );
}

/** The id of a model on the hub, to add it. */
function HubForm({
  id,
  isBusy,
  onInput,
  onAdd,
}: {
  id: string;
  isBusy: boolean;
  onInput: (id: string) => void;
  onAdd: () => Promise<void>;
}) {
  return (
    <div class="row nowrap">
      <label>
        Model on the hub
        <input
          type="text"
          placeholder="organization/name"
          value={id}
          onInput={(event) => onInput(event.currentTarget.value)}
          onKeyDown={(event) => {
            if (event.key !== "Enter") return;
            event.preventDefault(); // or it would submit the whole form
            void onAdd();
          }}
        />
      </label>
      <button type="button" disabled={id.trim() === "" || isBusy} onClick={() => void onAdd()}>
        Add
      </button>
    </div>
  );
}

/** Chooses the data to distill on, or uploads some. */
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
  const { busy, problem, run } = useTask(onBusy);
  const uploadData = (file: File) =>
    run(`Uploading ${file.name}…`, async () => {
      const { id } = await upload<Dataset>("POST", `/v1/datasets?name=${encodeURIComponent(file.name)}`, file);
      datasets.reload();
      onSelect(id);
    });
  const choices = (datasets.value ?? []).map(({ id, name, bytes: size }) => ({
    value: id,
    name: `${name} (${bytes(size)})`,
  }));
  return (
    <>
      <Select
        label="Data"
        value={selected}
        choices={[{ value: "", name: "Built-in stories" }, ...choices]}
        onSelect={onSelect}
      />
      <div class="row">
        <label class="button">
          Upload data
          <input
            type="file"
            class="hidden"
            aria-label="Upload data"
            accept=".txt,.jsonl,.json,.parquet,.gz"
            onChange={({ currentTarget }) => {
              const file = currentTarget.files?.[0];
              currentTarget.value = "";
              if (file !== undefined) void uploadData(file);
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
