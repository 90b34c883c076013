/** A server-sent event. */
export interface StreamEvent {
  /** Its name; empty where it has none. */
  readonly event: string;
  /** The id to resume the stream from; empty where there is none. */
  readonly id: string;
  readonly data: string;
}

/** Reads server-sent events from the response to any request; EventSource can send neither a body nor a key. */
export async function* eventsOf(response: Response): AsyncGenerator<StreamEvent> {
  // not every browser can iterate over streams
  const reader = response.body?.pipeThrough(new TextDecoderStream()).getReader();
  if (reader === undefined) return;
  let text = "";
  try {
    for (let part = await reader.read(); part.value !== undefined; part = await reader.read()) {
      text += part.value;
      const blocks = text.split("\n\n");
      text = blocks.pop() ?? "";
      for (const block of blocks) yield eventOf(block.split("\n"));
    }
  } finally {
    await reader.cancel().catch(() => {});
  }
}

function eventOf(lines: readonly string[]): StreamEvent {
  const field = (name: string) =>
    lines
      .filter((line) => line.startsWith(`${name}:`))
      .map((line) => line.slice(name.length + 1).trimStart())
      .join("\n");
  return { event: field("event"), id: field("id"), data: field("data") };
}
