/** One event of a stream of server-sent events. */
export interface StreamEvent {
  /** Empty where it has no name. */
  readonly event: string;
  /** Where the stream can be resumed from; empty where it cannot. */
  readonly id: string;
  readonly data: string;
}

/** What a stream of server-sent events says, as it comes: also one of a request with a body, which EventSource cannot make. */
export async function* eventsOf(response: Response): AsyncGenerator<StreamEvent> {
  // not every browser iterates over streams
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
