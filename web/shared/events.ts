/** One event of a stream of server-sent events. */
export interface StreamEvent {
  /** Empty where it has no name. */
  readonly event: string;
  /** By which a stream can be gone on with; empty where it has none. */
  readonly id: string;
  readonly data: string;
}

/** What a stream of server-sent events says, as it comes: also one of a request with a body, which EventSource cannot make. */
export async function* eventsOf(response: Response): AsyncGenerator<StreamEvent> {
  if (response.body === null) return;
  let text = "";
  for await (const part of response.body.pipeThrough(new TextDecoderStream())) {
    text += part;
    const blocks = text.split("\n\n");
    text = blocks.pop() ?? "";
    for (const block of blocks) {
      const field = (name: string) =>
        block
          .split("\n")
          .filter((line) => line.startsWith(`${name}:`))
          .map((line) => line.slice(name.length + 1).trimStart())
          .join("\n");
      yield { event: field("event"), id: field("id"), data: field("data") };
    }
  }
}
