import { describe, expect, it } from "vitest";
import { ChatTemplate } from "../../../src/serve/engine/chat-template.js";
import { ApiError } from "../../../src/serve/errors.js";
import { FormatError } from "../../../src/system/errors.js";

const specials = { bos: "<s>", eos: "</s>" };
const template = (source: string) => new ChatTemplate(source, specials, "model.gguf");
const TURNS = `{{ bos_token }}{% for m in messages %}[{{ m.role }}]{{ m.content }}{{ eos_token }}{% endfor %}`;
const NO_SYSTEM = `{% if messages[0].role == "system" %}{{ raise_exception("no system role") }}{% endif %}${TURNS}`;
const conversation = [
  { role: "system", content: "Be brief." },
  { role: "user", content: "Hello" },
] as const;

describe("a chat template", () => {
  it("turns a conversation into a prompt, up to where the answer begins", () => {
    const chat = template(`${TURNS}{% if add_generation_prompt %}[assistant]{% endif %}`);
    expect(chat.render(conversation, [])).toBe("<s>[system]Be brief.</s>[user]Hello</s>[assistant]");
  });

  it("gets tools where there are some, and further variables", () => {
    const chat = template(`{% if tools %}{{ tools | length }} tools{% else %}none{% endif %}, {{ mode }}`);
    expect(chat.render(conversation, [{}, {}], { mode: "thinking" })).toBe("2 tools, thinking");
    expect(chat.render(conversation, [], { mode: "plain" })).toBe("none, plain");
  });

  it("that has no system role gets its text before the user's", () => {
    expect(template(NO_SYSTEM).render(conversation, [])).toBe("<s>[user]Be brief.\n\nHello</s>");
  });

  it("that does not end is ended", () => {
    const count = (body: string) => `{% for a in range(100000) %}${body}{% endfor %}`;
    expect(() => template(count(count(count("")))).render(conversation, [])).toThrow(
      /template takes more than 1000 ms/,
    );
    expect(template(TURNS).render(conversation.slice(1), [])).toBe("<s>[user]Hello</s>");
  });

  it("that does not take the messages answers with its reason", () => {
    const refusing = template(`{{ raise_exception("roles must alternate") }}`);
    for (const messages of [conversation, conversation.slice(1)]) {
      const attempt = () => refusing.render(messages, []);
      expect(attempt).toThrow(ApiError);
      expect(attempt).toThrow(/does not take these messages: .*roles must alternate/);
    }
  });

  it("that cannot be read is refused with the model's file", () => {
    expect(() => template("{% for m in %}")).toThrow(FormatError);
    expect(() => template("{% for m in %}")).toThrow(/^model\.gguf: its chat template cannot be read/);
  });
});
